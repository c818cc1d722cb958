// A libnvidia-ml.so.1 without GPUs: the part that the power agent calls, over a file that tests read and write.
//
// WINDLASS_FAKE_NVML names the file; its layout is in fake_nvml.py. Every call sees at once what a test changed.
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, IS_LOST = 15,
  MAX_GPUS = 8, MAX_SLICES = 4, UUID_BYTES = 64
};

typedef struct {
  char uuid[UUID_BYTES];
  char slices[MAX_SLICES][UUID_BYTES];
  uint64_t energy_mj;
  uint32_t limit_mw, min_mw, max_mw, draw_mw, clock_mhz, max_clock_mhz, cap_mhz, use_percent;
  int32_t fail_power, fail_cap, fail_free, lost, no_energy, writes;
} Gpu;

typedef struct {
  int32_t init_error, count;
  Gpu gpus[MAX_GPUS];
} Node;

static Node *node;

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  const char *path = getenv("WINDLASS_FAKE_NVML");
  int file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return DRIVER_NOT_LOADED;
  node = mmap(NULL, sizeof(Node), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (node == MAP_FAILED) { node = NULL; return DRIVER_NOT_LOADED; }
  return node->init_error;
}

int nvmlShutdown(void) {
  if (!node) return UNINITIALIZED;
  munmap(node, sizeof(Node));
  node = NULL;
  return OK;
}

const char *nvmlErrorString(int error) {
  switch (error) {
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
  }
}

int nvmlDeviceGetCount_v2(unsigned *count) {
  if (!node) return UNINITIALIZED;
  *count = (unsigned)node->count;
  return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  if (!node) return UNINITIALIZED;
  if ((int)index >= node->count) return INVALID;
  if (node->gpus[index].lost) return IS_LOST;
  *device = &node->gpus[index];
  return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (!node) return UNINITIALIZED;
  for (int i = 0; i < node->count; i++)
    if (!strcmp(uuid, node->gpus[i].uuid)) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, device);
  return NOT_FOUND;
}

// A slice's handle is the address of its UUID, a GPU's the address of its own, which comes first.
int nvmlDeviceGetUUID(const char *device, char *uuid, unsigned length) {
  if (strlen(device) + 1 > length) return 7;
  strcpy(uuid, device);
  return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(Gpu *gpu, unsigned *count) {
  (void)gpu;
  *count = MAX_SLICES;
  return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Gpu *gpu, unsigned index, void **device) {
  if (index >= MAX_SLICES || !gpu->slices[index][0]) return NOT_FOUND;
  *device = gpu->slices[index];
  return OK;
}

#define READ(NAME, FIELD)                   \
  int NAME(Gpu *gpu, unsigned *value) {     \
    if (gpu->lost) return IS_LOST;          \
    if (!gpu->max_mw) return NOT_SUPPORTED; \
    *value = gpu->FIELD;                    \
    return OK;                              \
  }
READ(nvmlDeviceGetPowerManagementLimit, limit_mw)
READ(nvmlDeviceGetPowerUsage, draw_mw)

int nvmlDeviceGetPowerManagementLimitConstraints(Gpu *gpu, unsigned *low, unsigned *high) {
  if (gpu->lost) return IS_LOST;
  if (!gpu->max_mw) return NOT_SUPPORTED;
  *low = gpu->min_mw;
  *high = gpu->max_mw;
  return OK;
}

int nvmlDeviceGetMaxClockInfo(Gpu *gpu, int kind, unsigned *mhz) {
  (void)kind;
  *mhz = gpu->max_clock_mhz;
  return gpu->lost ? IS_LOST : OK;
}

int nvmlDeviceGetClockInfo(Gpu *gpu, int kind, unsigned *mhz) {
  (void)kind;
  *mhz = gpu->clock_mhz;
  return gpu->lost ? IS_LOST : OK;
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, unsigned *rates) {
  rates[0] = gpu->use_percent;
  rates[1] = 0;
  return gpu->lost ? IS_LOST : OK;
}

int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *energy) {
  if (gpu->no_energy) return NOT_SUPPORTED;
  *energy = gpu->energy_mj;
  return gpu->lost ? IS_LOST : OK;
}

int nvmlDeviceSetPowerManagementLimit(Gpu *gpu, unsigned mw) {
  if (gpu->lost) return IS_LOST;
  if (gpu->fail_power) return gpu->fail_power;
  if (mw < gpu->min_mw || mw > gpu->max_mw) return INVALID;
  gpu->limit_mw = mw;
  gpu->writes++;
  return OK;
}

int nvmlDeviceSetGpuLockedClocks(Gpu *gpu, unsigned low, unsigned high) {
  if (gpu->lost) return IS_LOST;
  if (gpu->fail_cap) return gpu->fail_cap;
  if (low > high) return INVALID;
  gpu->cap_mhz = high;
  if (gpu->clock_mhz > high) gpu->clock_mhz = high;
  gpu->writes++;
  return OK;
}

int nvmlDeviceResetGpuLockedClocks(Gpu *gpu) {
  if (gpu->lost) return IS_LOST;
  if (gpu->fail_free) return gpu->fail_free;
  gpu->cap_mhz = 0;
  gpu->writes++;
  return OK;
}
