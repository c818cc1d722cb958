// The kernels in the compiler's own four-lane vectors: NEON on ARM, SSE2 on x86 without AVX2.
#define WL_ISA portable
#include "windlass/kernels.h"
