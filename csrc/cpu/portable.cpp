#define TIVTOK_VARIANT portable
#define TIVTOK_LANES 4
#define TIVTOK_REGISTERS 16
#include "variant.h"
