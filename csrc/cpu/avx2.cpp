#define TIVTOK_VARIANT avx2
#define TIVTOK_LANES 8
#define TIVTOK_REGISTERS 16
#include "variant.h"
