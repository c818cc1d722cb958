// The kernels for AVX2 with FMA and F16C. Compiled with the flags named in build.py; empty on other processors.
#if defined(__x86_64__)
#define WL_ISA avx2
#define WL_AVX2
#include "windlass/kernels.h"
#endif
