// The kernels for AVX-512 (F, BW, DQ, VL). Compiled with the flags named in build.py; empty on other processors.
#if defined(__x86_64__)
#define WL_ISA avx512
#define WL_AVX512
#include "windlass/kernels.h"
#endif
