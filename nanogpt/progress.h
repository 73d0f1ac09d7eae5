/* What a run prints on standard output: a line an iteration, a line an evaluation, and on a terminal below them a line of
 * progress, which is drawn anew in its place. */
#ifndef GPT_PROGRESS_H
#define GPT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

double gpt_now_ms(void);                      /* a clock that never goes back */

typedef struct {
    bool terminal;                            /* standard output is one */
    bool drawn;                               /* a progress line stands below */
    int64_t first, end;                       /* iterations of this run: first ... end - 1 */
    double start_ms, drawn_ms;                /* when the first iteration was over; when the line was drawn */
    double tokens_per_s;                      /* smoothed */
} gpt_progress;

gpt_progress gpt_progress_new(int64_t first, int64_t end);

/* iter 0: loss 10.8220, grad_norm 1.1066, lr 0.00e+00, time 1637.7ms */
void gpt_print_iteration(gpt_progress *progress, int64_t iteration, double loss, double grad_norm, double lr, double time_ms);
/* eval 0: val_loss 10.8240, time 812.3ms */
void gpt_print_evaluation(gpt_progress *progress, int64_t iteration, double val_loss, double time_ms);

/* Draws the line, at most ten times a second. */
void gpt_progress_draw(gpt_progress *progress, int64_t iteration, double loss, double tokens_per_s);
void gpt_progress_clear(gpt_progress *progress);          /* before anything else is printed */

#endif
