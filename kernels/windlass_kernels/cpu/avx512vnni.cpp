// The products of 8- and 4-bit weights for AVX-512 with VNNI. Compiled with the flags named in build.py; empty on other processors.
#if defined(__x86_64__)
#define WL_ISA avx512vnni
#define WL_AVX512
#define WL_VNNI
#include "windlass/packed.h"
#endif
