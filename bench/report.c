/* Results for people, for machines, and beside those of an earlier run. */
#include "bench/bench.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nanogpt/files.h"

/* -- an earlier run -------------------------------------------------------------------------------------------------------- */

struct bench_baseline { cJSON *json; const cJSON *rows; };

bench_baseline *bench_baseline_open(const char *path)
{
    size_t bytes;
    char *text = gpt_file_read(path, &bytes);
    cJSON *json = text ? gpt_json_parse(path, text, bytes) : NULL;
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(json, "results");
    rax_free(text);
    if (!json)
        return NULL;
    if (!cJSON_IsArray(rows)) {
        cJSON_Delete(json);
        rax_fail(RAX_MISTAKE, "%s: is not what rax bench --json prints", path);
        return NULL;
    }
    bench_baseline *baseline = rax_alloc(sizeof *baseline);
    *baseline = (bench_baseline){ json, rows };
    return baseline;
}

void bench_baseline_free(bench_baseline *baseline)
{
    if (!baseline)
        return;
    cJSON_Delete(baseline->json);
    rax_free(baseline);
}

/* Milliseconds of the case of this name, 0 where there was none. */
static double old_ms(const bench_baseline *baseline, const char *name)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, baseline->rows) {
        const cJSON *other = cJSON_GetObjectItemCaseSensitive(row, "name"), *ms = cJSON_GetObjectItemCaseSensitive(row, "median_ms");
        if (cJSON_IsString(other) && cJSON_IsNumber(ms) && strcmp(other->valuestring, name) == 0)
            return ms->valuedouble;
    }
    return 0;
}

/* -- the table --------------------------------------------------------------------------------------------------------------- */

void bench_print_peak(FILE *out, const rax_peak *p)
{
    char threads[32];
    snprintf(threads, sizeof threads, "%d thread%s", p->threads, p->threads == 1 ? "" : "s");
    fprintf(out, "peak on %s: f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, memory %.1f GB/s read, %.1f GB/s updated in place\n", p->device ? p->device : threads,
            p->f32_gflops, p->bf16_gflops, p->read_gbs, p->update_gbs);
}

void bench_print_head(const bench *b, const bench_baseline *baseline)
{
    bench_print_peak(stdout, &b->peak);
    printf("\n%-44s %12s %8s %9s %8s %8s %8s%s\n", "case", "median", "spread", "GFLOP/s", "GB/s", "of peak", "plan MB", baseline ? "   before   speed" : "");
}

static void print_time(double ms)
{
    if (ms < 0.1)
        printf(" %9.2f us", ms * 1e3);
    else if (ms < 10000)
        printf(" %9.3f ms", ms);
    else
        printf(" %9.3f s ", ms * 1e-3);
}

static void print_rate(int width, double rate)
{
    if (rate > 0)
        printf(" %*.1f", width, rate);
    else
        printf(" %*s", width, "");
}

void bench_print_row(const bench_result *r, const bench_baseline *baseline)
{
    char share[16] = "";
    if (r->share > 0)
        snprintf(share, sizeof share, "%.1f%%", 100 * r->share);
    printf("%-44s", r->name);
    print_time(r->median_ms);
    printf(" %6.1f%%", 100 * (r->high_ms - r->low_ms) / r->median_ms);
    print_rate(10, r->gflops);
    print_rate(8, r->gbs);
    printf(" %8s", share);
    print_rate(8, r->planned_mb);
    double before = baseline ? old_ms(baseline, r->name) : 0;
    if (before > 0) {
        print_time(before);
        printf(" %6.2fx", before / r->median_ms);
    }
    printf("\n");
    fflush(stdout);
}

/* -- JSON -------------------------------------------------------------------------------------------------------------------- */

static const char *bound_name(bench_bound bound)
{
    switch (bound) {
    case BENCH_F32:     return "f32";
    case BENCH_BF16:    return "bf16";
    case BENCH_MEMORY:  return "memory";
    case BENCH_NOTHING: break;
    }
    return "none";
}

/* What rax_print_info prints, name by name. */
static cJSON *machine(void)
{
    char *text = NULL;
    size_t length = 0;
    cJSON *object = cJSON_CreateObject();
    FILE *out = open_memstream(&text, &length);
    rax_print_info(out);
    fclose(out);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        size_t name = strcspn(line, " ");
        const char *value = line + name + strspn(line + name, " ");
        line[name] = '\0';
        cJSON_AddStringToObject(object, line, value);
    }
    free(text);
    return object;
}

void bench_print_json(const bench *b)
{
    cJSON *json = cJSON_CreateObject(), *peak = cJSON_AddObjectToObject(json, "peak"), *results;
    cJSON_AddItemToObject(json, "machine", machine());
    if (b->peak.device)
        cJSON_AddStringToObject(peak, "device", b->peak.device);
    cJSON_AddNumberToObject(peak, "threads", b->peak.threads);
    cJSON_AddNumberToObject(peak, "f32_gflops", b->peak.f32_gflops);
    cJSON_AddNumberToObject(peak, "bf16_gflops", b->peak.bf16_gflops);
    cJSON_AddNumberToObject(peak, "read_gbs", b->peak.read_gbs);
    cJSON_AddNumberToObject(peak, "update_gbs", b->peak.update_gbs);
    results = cJSON_AddArrayToObject(json, "results");
    for (int i = 0; i < b->n_results; i++) {
        const bench_result *r = &b->results[i];
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "name", r->name);
        cJSON_AddNumberToObject(row, "median_ms", r->median_ms);
        cJSON_AddNumberToObject(row, "low_ms", r->low_ms);
        cJSON_AddNumberToObject(row, "high_ms", r->high_ms);
        cJSON_AddNumberToObject(row, "gflops", r->gflops);
        cJSON_AddNumberToObject(row, "gbs", r->gbs);
        cJSON_AddStringToObject(row, "bound", bound_name(r->bound));
        cJSON_AddNumberToObject(row, "share", r->share);
        cJSON_AddNumberToObject(row, "planned_mb", r->planned_mb);
        cJSON_AddItemToArray(results, row);
    }
    char *text = cJSON_Print(json);
    printf("%s\n", text);
    cJSON_free(text);
    cJSON_Delete(json);
}
