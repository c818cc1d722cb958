// Kernels with the faults that the emulator must find; the test beside says which is which.
#include "device.cuh"

WINDLASS_KERNEL(64, 1) sum_without_barrier(const float* values, int count, float* result) {
    WINDLASS_SHARED(memory);
    float* const shared = reinterpret_cast<float*>(memory);
    const int thread = static_cast<int>(threadIdx.x);
    shared[thread] = thread < count ? values[thread] : 0.0f;
    if (thread == 0) {
        float sum = 0.0f;
        for (int i = 0; i < count; ++i) sum += shared[i];
        *result = sum;
    }
}
WINDLASS_KERNEL(64, 1) barrier_for_some(const float*, int count, float* result) {
    if (static_cast<int>(threadIdx.x) < count) {
        sync_block();
    } else {
        *result = shuffle_xor(1.0f, 1);
    }
}
WINDLASS_KERNEL(64, 1) shuffle_without_a_lane(const float*, int count, float* result) {
    if (static_cast<int>(threadIdx.x) == count) return;
    *result = shuffle_xor(1.0f, 1);
}
WINDLASS_KERNEL(64, 1) read_beyond(const float* values, int count, float* result) { *result = values[count]; }
WINDLASS_KERNEL(64, 1) read_askew(const float* values, int, float* result) { *result = bits_float(load16(values + 1).x); }
WINDLASS_KERNEL(64, 1) read_unset_shared(const float*, int, float* result) {
    WINDLASS_SHARED(memory);
    *result = reinterpret_cast<float*>(memory)[0];
}
