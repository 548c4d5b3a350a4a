#define TIVTOK_VARIANT avx512
#define TIVTOK_LANES 16
#define TIVTOK_REGISTERS 32
#include "variant.h"
