/* The lines of a run. */
#include "nanogpt/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

double gpt_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

gpt_progress gpt_progress_new(int64_t first, int64_t end)
{
    return (gpt_progress){ .terminal = isatty(STDOUT_FILENO), .first = first, .end = end };
}

void gpt_progress_clear(gpt_progress *progress)
{
    if (progress->drawn) {
        fputs("\r\033[K", stdout);
        fflush(stdout);
    }
    progress->drawn = false;
}

/* A NaN's sign is an accident of how it came about. */
static double unsigned_nan(double x) { return isnan(x) ? NAN : x; }

void gpt_print_iteration(gpt_progress *progress, int64_t iteration, double loss, double grad_norm, double lr, double time_ms)
{
    gpt_progress_clear(progress);
    printf("iter %" PRId64 ": loss %.4f, grad_norm %.4f, lr %.2e, time %.1fms\n", iteration, unsigned_nan(loss), unsigned_nan(grad_norm), lr, time_ms);
    fflush(stdout);
}

void gpt_print_evaluation(gpt_progress *progress, int64_t iteration, double val_loss, double time_ms)
{
    gpt_progress_clear(progress);
    printf("eval %" PRId64 ": val_loss %.4f, time %.1fms\n", iteration, unsigned_nan(val_loss), time_ms);
    fflush(stdout);
}

void gpt_progress_draw(gpt_progress *progress, int64_t iteration, double loss, double tokens_per_s)
{
    double now = gpt_now_ms();
    /* The first iteration compiles, and says nothing of those to come. */
    if (iteration == progress->first) {
        progress->start_ms = now;
        progress->tokens_per_s = tokens_per_s;
        return;
    }
    progress->tokens_per_s += (iteration == progress->first + 1 ? 1 : 0.1) * (tokens_per_s - progress->tokens_per_s);
    if (!progress->terminal || (progress->drawn && now - progress->drawn_ms < 100))
        return;
    int64_t done = iteration - progress->first, left = progress->end - iteration - 1;
    int64_t seconds = (int64_t)((now - progress->start_ms) / 1e3 * (double)left / (double)done);
    printf("\r\033[K%" PRId64 "/%" PRId64 "  %.0f tokens/s  %" PRId64 ":%02d:%02d left  loss %.4f", iteration + 1, progress->end,
           progress->tokens_per_s, seconds / 3600, (int)(seconds / 60 % 60), (int)(seconds % 60), loss);
    fflush(stdout);
    progress->drawn = true;
    progress->drawn_ms = now;
}
