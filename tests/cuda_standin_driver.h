/* The stand-in's driver, a part of cuda_standin.h: every function of libcuda that the backend calls, by what it is called in driver.def. */
#ifndef TESTS_CUDA_STANDIN_DRIVER_H
#define TESTS_CUDA_STANDIN_DRIVER_H

/* -- the driver ---------------------------------------------------------------------------------------------------------------- */

static int si_init(unsigned flags) { return flags ? 1 : 0; }
static int si_driver_version(int *version) { return *version = standin.driver ? standin.driver : 13000, 0; }
static int si_error_text(int error, const char **text) { return *text = error == CUDA_OUT_OF_MEMORY ? "out of memory" : error == 700 ? "an illegal memory access was encountered" : "an error of the stand-in", 0; }
static int si_device_get(int *device, int ordinal) { return *device = ordinal, 0; }
static int si_device_name(char *name, int size, int device) { return (void)device, snprintf(name, (size_t)size, "stand-in"), 0; }
static int si_device_attribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == CUDA_ATTRIBUTE_MAJOR ? standin.arch_major : attribute == CUDA_ATTRIBUTE_MINOR ? standin.arch_minor : attribute == CUDA_ATTRIBUTE_SHARED_OPTIN ? SHARED_OPTIN : 132;
    return 0;
}
static int si_context_retain(cuda_context *context, int device) { return (void)device, *context = (cuda_context)&standin, 0; }
static int si_context_release(int device) { return (void)device, 0; }
static int si_context_set(cuda_context context) { return context ? 0 : 1; }
static int si_memory_info(size_t *available, size_t *total) { return *total = standin.most_bytes, *available = standin.most_bytes - standin.device_bytes, 0; }
static int si_memory_alloc(cuda_pointer *memory, size_t bytes)
{
    if (standin.dead)
        return standin.dead;
    if (bytes > standin.most_bytes - standin.device_bytes)
        return CUDA_OUT_OF_MEMORY;
    *memory = (cuda_pointer)(uintptr_t)new_block(bytes, false);
    return 0;
}
static int si_memory_free(cuda_pointer memory)
{
    STANDIN_CHECK(standin.dead || is_idle(), "memory is freed while a stream has work");
    free_block((void *)(uintptr_t)memory, false);
    return standin.dead;
}
static int si_host_alloc(void **memory, size_t bytes) { return *memory = new_block(bytes, true), 0; }
static int si_host_free(void *memory) { return free_block(memory, true), 0; }
static int si_copy_to_device(cuda_pointer to, const void *from, size_t bytes, cuda_stream stream)
{
    STANDIN_CHECK(block_of((void *)(uintptr_t)to, bytes, false), "a copy to what is no device memory");
    STANDIN_CHECK(block_of(from, bytes, true), "a copy from memory that is not pinned");
    stream_op *op = queue(DO_COPY_IN, stream);
    op->to = (char *)(uintptr_t)to, op->from = from, op->bytes = bytes;
    return queued(stream);
}
static int si_copy_to_host(void *to, cuda_pointer from, size_t bytes, cuda_stream stream)
{
    STANDIN_CHECK(block_of((void *)(uintptr_t)from, bytes, false), "a copy from what is no device memory");
    stream_op *op = queue(DO_COPY_OUT, stream);
    op->to = to, op->from = (char *)(uintptr_t)from, op->bytes = bytes;
    return queued(stream);
}
static int si_fill(cuda_pointer memory, unsigned char value, size_t bytes, cuda_stream stream)
{
    STANDIN_CHECK(value == 0 && block_of((void *)(uintptr_t)memory, bytes, false), "a fill of what is no device memory");
    stream_op *op = queue(DO_FILL, stream);
    op->to = (char *)(uintptr_t)memory, op->bytes = bytes;
    return queued(stream);
}
static int si_stream_new(cuda_stream *stream, unsigned flags)
{
    STANDIN_CHECK(n_streams < MOST_STREAMS && flags == CUDA_STREAM_NON_BLOCKING, "more than %d streams, or one that waits for others", MOST_STREAMS);
    return *stream = &streams[n_streams++], 0;
}
static int si_stream_free(cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream) && (standin.dead || stream->waiting.n == 0), "a stream is freed that is none, or has work");
    free(stream->waiting.at);
    return stream->waiting = (op_list){0}, 0;
}
static int si_stream_wait(cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream) && !capturing, "a wait while a stream is captured");
    standin.stream_waits++;
    return run_until(stream, INT64_MAX), standin.dead;
}
static int si_stream_wait_event(cuda_stream stream, cuda_event event, unsigned flags)
{
    STANDIN_CHECK(event->recorded && flags == 0 && !capturing, "a stream waits for an event that was not recorded");
    if (event->stream == stream)
        return 0;
    return queue(DO_WAIT, stream)->event = *event, queued(stream);
}
static int si_event_new(cuda_event *event, unsigned flags) { return (void)flags, *event = calloc(1, sizeof **event), 0; }
static int si_event_free(cuda_event event) { return free(event), 0; }
static int si_event_record(cuda_event event, cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream) && !capturing, "an event while a stream is captured");
    event->recorded = true;
    event->stream = stream;
    queue(DO_EVENT, stream)->timed = event;
    queued(stream);
    event->ticket = ++next_ticket;
    return standin.dead;
}
static int si_event_record_in_graph(cuda_event event, cuda_stream stream, unsigned flags)
{
    STANDIN_CHECK(stream == streams && capturing && flags == CUDA_EVENT_EXTERNAL, "an event of a graph outside of one");
    event->stream = stream;
    event->ticket = INT64_MAX;               /* with the graph that it is in */
    return queue(DO_EVENT, stream)->timed = event, event->recorded = true, 0;
}
static int si_event_elapsed(float *ms, cuda_event begin, cuda_event end)
{
    STANDIN_CHECK(begin->recorded && end->recorded, "the time between events that were not recorded");
    *ms = (float)((double)(end->time.tv_sec - begin->time.tv_sec) * 1e3 + (double)(end->time.tv_nsec - begin->time.tv_nsec) * 1e-6);
    return 0;
}
static int si_event_wait(cuda_event event)
{
    STANDIN_CHECK(event->recorded, "a wait for an event that was not recorded");
    const op_list *waiting = &event->stream->waiting;
    standin.early_waits += waiting->n > 0 && waiting->at[waiting->n - 1].ticket > event->ticket;
    standin.blocking_waits += run_until(event->stream, event->ticket);
    return standin.dead;
}
static int si_capture_begin(cuda_stream stream, int mode) { return (void)mode, capturing = true, captured = (op_list){0}, standin.captures++, stream == streams ? 0 : 1; }
static int si_capture_end(cuda_stream stream, cuda_graph *graph)
{
    capturing = false;
    *graph = calloc(1, sizeof **graph);
    (*graph)->ops = captured;
    return stream == streams ? 0 : 1;
}
static int si_graph_instantiate(cuda_graph_exec *exec, cuda_graph graph, unsigned long long flags)
{
    *exec = calloc(1, sizeof **exec);
    (*exec)->ops = graph->ops;
    graph->ops = (op_list){0};
    return flags ? 1 : 0;
}
static int si_graph_launch(cuda_graph_exec exec, cuda_stream stream) { return queue(DO_GRAPH, stream)->graph = exec, standin.graph_launches++, stream == streams ? standin.dead : 1; }
static int si_graph_free(cuda_graph graph) { return free(graph), 0; }
static int si_graph_exec_free(cuda_graph_exec exec)
{
    STANDIN_CHECK(standin.dead || is_idle(), "a graph is freed while a stream has work");
    for (int i = 0; i < exec->ops.n; i++)
        free(exec->ops.at[i].args);
    free(exec->ops.at);
    free(exec);
    return 0;
}

static int si_module_load(cuda_module *module, const void *image)
{
    size_t bytes;
    memcpy(&bytes, image, sizeof bytes);
    cuda_module m = *module = calloc(1, sizeof *m);
    if (bytes == 0)
        return 0;
    if (standin.runs_ptx) {
        char *why;
        m->ptx = ptx_read((const char *)image + sizeof bytes, &why);
        STANDIN_CHECK(m->ptx, "%s", why);
        return 0;
    }
    emulator();
    m->handle = open_image(image, &m->fd, RTLD_LOCAL);
    return 0;
}
static int si_module_free(cuda_module module)
{
    if (module->ptx)
        ptx_free(module->ptx);
    if (module->handle)
        dlclose(module->handle), close(module->fd);
    return free(module), 0;
}
static int si_module_function(cuda_function *function, cuda_module module, const char *name)
{
    char entry[80];
    if (module->ptx)
        return module->function.ptx = ptx_find(module->ptx, name), *function = &module->function, module->function.ptx ? 0 : 500;
    if (!module->handle)
        return *function = &module->function, 0;
    snprintf(entry, sizeof entry, "%s_entry", name);
    void *at = dlsym(module->handle, entry), *emulate = dlsym(emulator(), "rax_emulate");
    memcpy(&module->function.entry, &at, sizeof at);
    memcpy(&module->function.emulate, &emulate, sizeof emulate);
    return *function = &module->function, at && emulate ? 0 : 500;
}
static int si_function_set(cuda_function function, int attribute, int value)
{
    STANDIN_CHECK(attribute == CUDA_FUNCTION_DYNAMIC_SHARED && value <= SHARED_OPTIN, "a block with %d bytes of shared memory", value);
    return function->shared_bytes = value, 0;
}
static int si_launch(cuda_function function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, cuda_stream stream, void **params, void **extra)
{
    STANDIN_CHECK(stream == streams && !params && extra[0] == CUDA_LAUNCH_POINTER && extra[2] == CUDA_LAUNCH_SIZE && extra[4] == CUDA_LAUNCH_END, "a launch without its parameters");
    STANDIN_CHECK(gx && gy && gz && bx && bx <= 1024 && by == 1 && bz == 1 && gy <= 65535 && gz <= 65535, "a launch of %u x %u x %u blocks of %u", gx, gy, gz, bx);
    STANDIN_CHECK(shared <= 48 << 10 || (int)shared <= function->shared_bytes, "%u bytes of shared memory that were not asked for", shared);
    size_t size = *(const size_t *)extra[3];
    STANDIN_CHECK(size <= (standin.nvrtc_version >= 121 ? 32764 : 4096), "a launch with %zu bytes of parameters", size);
    stream_op *op = queue(DO_LAUNCH, stream);
    op->function = function, op->threads = bx, op->shared_bytes = shared;
    op->grid[0] = gx, op->grid[1] = gy, op->grid[2] = gz;
    op->args = malloc(size + 8);
    op->bytes = size;
    memcpy(op->args, extra[1], size);
    for (size_t i = 0; i < size / 8; i++)          /* what looks like an address of this process is one of device memory */
        STANDIN_CHECK(op->args[i] < (int64_t)1 << 40 || block_of((void *)(intptr_t)op->args[i], 0, false), "parameter %zu of a launch points outside of memory", i);
    return 0;
}

#endif
