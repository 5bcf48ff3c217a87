/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests on machines without a GPU.
 *
 * It answers the calls that clara-flow makes through pynvml, out of a text file that the environment variable
 * NVML_STAND_IN names and that is read again at every call, so that a test can change a GPU while somebody watches it
 * (write a new file, then rename it over the old one). Without the variable there is no driver.
 *
 *     driver CODE                            what nvmlInit answers, an NVML return code
 *     gpu UUID                               begins a card; the lines below are about it
 *     mig UUID INSTANCE                      begins a MIG instance of the card before, with its GPU instance id
 *     event NUMBER UUID TYPE DATA INSTANCE   an event that happened; NUMBER grows from line to line
 *     KEY VALUE...                           a fact: name, memory, pci, numa, temperature, clocks, ecc, rows, pages,
 *                                            mig_mode, events, process, graphics, link
 *     error FUNCTION CODE                    what that function (* = every one) answers about this device
 *
 * A fact that is not there is not supported. Sizes are MiB.
 */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15
};
enum { DEVICES = 64, LINES = 64, LENGTH = 160, SWITCH = 2, WAIT_STEP_MS = 2 };

typedef struct { char uuid[80]; } Handle;                    /* what an nvmlDevice_t points to; never freed */
typedef struct { unsigned long long seen; char uuids[DEVICES][80]; unsigned long long types[DEVICES]; int count; } Events;

typedef struct {
    char uuid[80];
    int card;                                                /* -1: it is a card; else the index of its card in all */
    unsigned instance;
    char lines[LINES][LENGTH];
    int count;
} Device;

typedef struct { int driver; Device all[DEVICES]; int count; char events[LINES][LENGTH]; int happened; } World;

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char address[32];
} Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { Handle *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;

static Handle *handle_of(const char *uuid) {
    static struct Known { Handle handle; struct Known *next; } *known;
    for (struct Known *k = __atomic_load_n(&known, __ATOMIC_ACQUIRE); k; k = k->next)
        if (!strcmp(k->handle.uuid, uuid)) return &k->handle;
    struct Known *made = calloc(1, sizeof *made);
    snprintf(made->handle.uuid, sizeof made->handle.uuid, "%s", uuid);
    do made->next = __atomic_load_n(&known, __ATOMIC_ACQUIRE);
    while (!__atomic_compare_exchange_n(&known, &made->next, made, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    return &made->handle;
}

/* The world as the file describes it now; the caller frees it. */
static World *look(void) {
    World *world = calloc(1, sizeof *world);
    const char *path = getenv("NVML_STAND_IN");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) {
        world->driver = DRIVER_NOT_LOADED;
        return world;
    }
    char line[LENGTH];
    int card = -1;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        Device *next = &world->all[world->count];
        if (sscanf(line, "driver %d", &world->driver) == 1) continue;
        if (sscanf(line, "gpu %79s", next->uuid) == 1) {
            next->card = -1;
            card = world->count++;
        } else if (!strncmp(line, "mig ", 4)) {
            sscanf(line, "mig %79s %u", next->uuid, &next->instance);
            next->card = card;
            world->count++;
        } else if (!strncmp(line, "event ", 6)) {
            strcpy(world->events[world->happened++], line + 6);
        } else if (world->count) {
            Device *device = &world->all[world->count - 1];
            strcpy(device->lines[device->count++], line);
        }
        if (world->count == DEVICES || world->happened == LINES) break;
    }
    fclose(file);
    return world;
}

/* The rest of the device's `number`-th line that begins with `key`, or NULL. */
static const char *fact(const Device *device, const char *key, int number) {
    size_t length = strlen(key);
    for (int i = 0; i < device->count; i++)
        if (!strncmp(device->lines[i], key, length) && device->lines[i][length] == ' ' && number-- == 0)
            return device->lines[i] + length + 1;
    return NULL;
}

static int find(World *world, const Handle *handle, const char *function, const Device **found) {
    for (int i = 0; i < world->count; i++) {
        if (strcmp(world->all[i].uuid, handle->uuid)) continue;
        const char *line;
        for (int n = 0; (line = fact(&world->all[i], "error", n)); n++) {
            char name[LENGTH];
            int code;
            if (sscanf(line, "%159s %d", name, &code) == 2 && (!strcmp(name, "*") || !strcmp(name, function))) return code;
        }
        *found = &world->all[i];
        return SUCCESS;
    }
    return GPU_IS_LOST;
}

/* Begins a function about a device; `return done(world, code)` ends it. */
#define ABOUT(handle)                                          \
    World *world = look();                                     \
    const Device *device = NULL;                               \
    int code = find(world, handle, __func__, &device);         \
    if (code) return done(world, code);

static int done(World *world, int code) {
    free(world);
    return code;
}

/* Reads up to three numbers of a fact; its absence is NOT_SUPPORTED. */
static int numbers(const Device *device, const char *key, int number, unsigned *a, unsigned *b, unsigned *c) {
    const char *line = fact(device, key, number);
    if (!line) return NOT_SUPPORTED;
    unsigned spare;
    return sscanf(line, "%i %i %i", (int *)a, (int *)(b ? b : &spare), (int *)(c ? c : &spare)) > 0 ? SUCCESS : NOT_SUPPORTED;
}

static void set_pci(Pci *pci, unsigned domain, unsigned bus, unsigned slot) {
    memset(pci, 0, sizeof *pci);
    pci->domain = domain, pci->bus = bus, pci->device = slot;
    snprintf(pci->address, sizeof pci->address, "%08X:%02X:%02X.0", domain, bus, slot);
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    World *world = look();
    return done(world, world->driver);
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    static __thread char text[32];
    snprintf(text, sizeof text, "error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    World *world = look();
    *count = 0;
    for (int i = 0; i < world->count; i++) *count += world->all[i].card < 0;
    return done(world, world->driver);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **handle) {
    World *world = look();
    const Device *device = NULL;
    int code = INVALID_ARGUMENT;
    for (int i = 0; i < world->count; i++)
        if (world->all[i].card < 0 && index-- == 0) {
            *handle = handle_of(world->all[i].uuid);
            code = find(world, *handle, __func__, &device);
            break;
        }
    return done(world, code);
}

int nvmlDeviceGetUUID(const Handle *handle, char *uuid, unsigned length) {
    ABOUT(handle)
    snprintf(uuid, length, "%s", device->uuid);
    return done(world, SUCCESS);
}

int nvmlDeviceGetName(const Handle *handle, char *name, unsigned length) {
    ABOUT(handle)
    const char *text = fact(device, "name", 0);
    if (text) snprintf(name, length, "%s", text);
    return done(world, text ? SUCCESS : NOT_SUPPORTED);
}

/* memory TOTAL USED [RESERVED]: without RESERVED only the old form of the call is supported. */
int nvmlDeviceGetMemoryInfo(const Handle *handle, Memory *memory) {
    ABOUT(handle)
    unsigned total = 0, used = 0;
    code = numbers(device, "memory", 0, &total, &used, NULL);
    *memory = (Memory){(unsigned long long)total << 20, (unsigned long long)(total - used) << 20, (unsigned long long)used << 20};
    return done(world, code);
}

int nvmlDeviceGetMemoryInfo_v2(const Handle *handle, Memory2 *memory) {
    ABOUT(handle)
    unsigned total = 0, used = 0, reserved = UINT32_MAX;
    code = numbers(device, "memory", 0, &total, &used, &reserved);
    if (reserved == UINT32_MAX) return done(world, NOT_SUPPORTED);
    memory->total = (unsigned long long)total << 20;
    memory->used = (unsigned long long)used << 20;
    memory->reserved = (unsigned long long)reserved << 20;
    memory->free = memory->total - memory->used - memory->reserved;
    return done(world, code);
}

int nvmlDeviceGetPciInfo_v3(const Handle *handle, Pci *pci) {
    ABOUT(handle)
    unsigned domain = 0, bus = 0, slot = 0;
    code = numbers(device, "pci", 0, &domain, &bus, &slot);
    set_pci(pci, domain, bus, slot);
    return done(world, code);
}

int nvmlDeviceGetNumaNodeId(const Handle *handle, unsigned *node) {
    ABOUT(handle)
    return done(world, numbers(device, "numa", 0, node, NULL, NULL));
}

int nvmlDeviceGetTemperature(const Handle *handle, int sensor, unsigned *degrees) {
    (void)sensor;
    ABOUT(handle)
    return done(world, numbers(device, "temperature", 0, degrees, NULL, NULL));
}

int nvmlDeviceGetCurrentClocksThrottleReasons(const Handle *handle, unsigned long long *reasons) {
    ABOUT(handle)
    unsigned bits = 0;
    code = numbers(device, "clocks", 0, &bits, NULL, NULL);
    *reasons = bits;
    return done(world, code);
}

/* ecc VOLATILE AGGREGATE: uncorrected errors; corrected ones are not asked for. */
int nvmlDeviceGetTotalEccErrors(const Handle *handle, int type, int counter, unsigned long long *count) {
    (void)type;
    ABOUT(handle)
    unsigned of[2] = {0, 0};
    code = numbers(device, "ecc", 0, &of[0], &of[1], NULL);
    *count = of[counter == 1];
    return done(world, code);
}

/* rows PENDING FAILED */
int nvmlDeviceGetRemappedRows(const Handle *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    ABOUT(handle)
    *corrected = *uncorrected = 0;
    return done(world, numbers(device, "rows", 0, pending, failed, NULL));
}

int nvmlDeviceGetRetiredPagesPendingStatus(const Handle *handle, unsigned *pending) {
    ABOUT(handle)
    return done(world, numbers(device, "pages", 0, pending, NULL, NULL));
}

int nvmlDeviceGetMigMode(const Handle *handle, unsigned *now, unsigned *pending) {
    ABOUT(handle)
    code = numbers(device, "mig_mode", 0, now, NULL, NULL);
    *pending = *now;
    return done(world, code);
}

int nvmlDeviceGetMaxMigDeviceCount(const Handle *handle, unsigned *count) {
    ABOUT(handle)
    *count = 7;
    return done(world, SUCCESS);
}

int nvmlDeviceGetMigDeviceHandleByIndex(const Handle *handle, unsigned index, Handle **instance) {
    ABOUT(handle)
    code = NOT_FOUND;
    for (int i = 0; i < world->count && code; i++)
        if (world->all[i].card >= 0 && &world->all[world->all[i].card] == device && index-- == 0) {
            *instance = handle_of(world->all[i].uuid);
            code = SUCCESS;
        }
    return done(world, code);
}

int nvmlDeviceGetGpuInstanceId(const Handle *handle, unsigned *id) {
    ABOUT(handle)
    *id = device->instance;
    return done(world, SUCCESS);
}

/* process PID MIB, graphics PID MIB: MIB -1 is "not available"; `process none` is an empty list. */
static int processes(const Device *device, const char *key, unsigned *room, Process *list) {
    if (!fact(device, key, 0)) return NOT_SUPPORTED;
    unsigned count = 0, pid, mib;
    while (numbers(device, key, (int)count, &pid, &mib, NULL) == SUCCESS) {
        if (list && count < *room)
            list[count] = (Process){pid, (int)mib < 0 ? UINT64_MAX : (unsigned long long)mib << 20, UINT32_MAX, UINT32_MAX};
        count++;
    }
    int fits = list ? count <= *room : count == 0;
    *room = count;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const Handle *handle, unsigned *room, Process *list) {
    ABOUT(handle)
    return done(world, processes(device, "process", room, list));
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const Handle *handle, unsigned *room, Process *list) {
    ABOUT(handle)
    return done(world, processes(device, "graphics", room, list));
}

/* link DOMAIN BUS SLOT: to the GPU at that address; `link switch`; `link down`. */
static int nvlink(const Device *device, unsigned link, const char **end) {
    *end = fact(device, "link", (int)link);
    return *end ? SUCCESS : fact(device, "link", 0) ? INVALID_ARGUMENT : NOT_SUPPORTED;
}

int nvmlDeviceGetNvLinkState(const Handle *handle, unsigned link, unsigned *active) {
    ABOUT(handle)
    const char *end;
    code = nvlink(device, link, &end);
    if (!code) *active = strcmp(end, "down") != 0;
    return done(world, code);
}

int nvmlDeviceGetNvLinkRemoteDeviceType(const Handle *handle, unsigned link, unsigned *type) {
    ABOUT(handle)
    const char *end;
    code = nvlink(device, link, &end);
    if (!code) *type = strcmp(end, "switch") ? 0 : SWITCH;
    return done(world, code);
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(const Handle *handle, unsigned link, Pci *pci) {
    ABOUT(handle)
    unsigned domain = 0, bus = 0, slot = 0;
    code = numbers(device, "link", (int)link, &domain, &bus, &slot);
    set_pci(pci, domain, bus, slot);
    return done(world, code);
}

int nvmlDeviceGetSupportedEventTypes(const Handle *handle, unsigned long long *types) {
    ABOUT(handle)
    unsigned bits = 0;
    code = numbers(device, "events", 0, &bits, NULL, NULL);
    *types = bits;
    return done(world, code);
}

int nvmlEventSetCreate(Events **set) {
    World *world = look();
    *set = calloc(1, sizeof **set);
    for (int i = 0; i < world->happened; i++) {
        unsigned long long number = strtoull(world->events[i], NULL, 10);
        if (number > (*set)->seen) (*set)->seen = number;
    }
    return done(world, SUCCESS);
}

int nvmlDeviceRegisterEvents(const Handle *handle, unsigned long long types, Events *set) {
    ABOUT(handle)
    set->types[set->count] = types;
    strcpy(set->uuids[set->count++], device->uuid);
    return done(world, SUCCESS);
}

static int next_event(const World *world, Events *set, Event *event) {
    for (int i = 0; i < world->happened; i++) {
        unsigned long long number, type, data;
        char uuid[80];
        int instance;
        if (sscanf(world->events[i], "%llu %79s %llu %llu %d", &number, uuid, &type, &data, &instance) != 5) continue;
        if (number <= set->seen) continue;
        set->seen = number;
        for (int k = 0; k < set->count; k++)
            if (!strcmp(set->uuids[k], uuid) && (set->types[k] & type)) {
                *event = (Event){handle_of(uuid), type, data, (unsigned)instance, UINT32_MAX};
                return 1;
            }
    }
    return 0;
}

int nvmlEventSetWait_v2(Events *set, Event *event, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += WAIT_STEP_MS) {
        World *world = look();
        int came = next_event(world, set, event);
        free(world);
        if (came) return SUCCESS;
        if (waited >= timeout_ms) return TIMEOUT;
        nanosleep(&(struct timespec){0, WAIT_STEP_MS * 1000000L}, NULL);
    }
}

int nvmlEventSetFree(Events *set) {
    free(set);
    return SUCCESS;
}
