/* Attention, forward and backward, without a matrix of rows x keys in memory (Dao, FlashAttention-2, arXiv:2307.08691).
 *
 * A block has 16 rows of queries a warp and goes through the keys by tiles, keeping of each row the maximum and the sum of its weights so far. The
 * gradient is two kernels, neither of which adds to what another block adds to: one by rows for dq, one by keys for dk and dv; both compute the
 * weights again from lse.
 *
 * A warp's tile is 16 rows; lane l holds of every 8 columns the elements (l/4, 2(l%4)), (l/4, 2(l%4)+1) and the same 8 rows below: the
 * accumulators of mma.m16n8k16. f32 has the same tiles by FMA. What comes before this text: A_BF16, A_D, A_DP (a multiple of 16), A_WARPS, A_BN,
 * A_ROWS, A_KEYS, A_HEADS, A_CAUSAL, A_SCALE, A_DROPS, A_THRESHOLD, A_KEEP, A_GRAD_BF16, and A_*_ROW, A_*_COLUMN, the strides of each operand. */

#if A_BF16
typedef rax_u16 rax_element;
#define A_GET(x) rax_from_bf16(x)
#define A_PUT(x) rax_to_bf16(x)
enum { A_PAD = 8 };
#else
typedef float rax_element;
#define A_GET(x) (x)
#define A_PUT(x) (x)
enum { A_PAD = 4 };
#endif
#if A_GRAD_BF16
typedef rax_u16 rax_grad;
#define A_PUT_GRAD(x) rax_to_bf16(x)
#else
typedef float rax_grad;
#define A_PUT_GRAD(x) (x)
#endif
enum { A_BM = 16 * A_WARPS, A_THREADS = 32 * A_WARPS, A_LD = A_DP + A_PAD, A_LP = A_BN + A_PAD, A_NT = A_BN / 8, A_DT = A_DP / 8 };

/* -- tiles ------------------------------------------------------------------------------------------------------------------ */

#ifdef RAX_EMULATED
#define A_MMA A_BF16
#elif A_BF16 && __CUDA_ARCH__ >= 800
#define A_MMA 1
#else
#define A_MMA 0
#endif

#if A_MMA && !defined RAX_EMULATED
RAX_DEVICE void rax_mma(float *c, const rax_u32 *a, rax_u32 b0, rax_u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
#if A_MMA
RAX_DEVICE rax_u32 rax_pair(const rax_u16 *at) { return (rax_u32)at[0] | (rax_u32)at[1] << 16; }
#endif

/* acc[n tiles] += A[16][K] B[8 n][K]^T, and += A[16][K] B[K][8 n]; operands in shared memory. */
#define A_TILE(name, B_PAIR, B_AT)                                                                                   \
    RAX_DEVICE void name(float (*acc)[4], int tiles, const rax_element *a, int lda, const rax_element *b, int ldb, int K) \
    {                                                                                                                \
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;                                              \
        A_PRODUCT(B_PAIR, B_AT)                                                                                      \
    }
#if A_MMA
#define A_PRODUCT(B_PAIR, B_AT)                                                                                      \
    RAX_UNROLL                                                                                                       \
    for (int k = 0; k < K; k += 16) {                                                                                \
        const rax_element *at = a + g * lda + k + 2 * t;                                                             \
        rax_u32 fragment[4];                                                                                         \
        fragment[0] = rax_pair(at), fragment[1] = rax_pair(at + 8 * lda), fragment[2] = rax_pair(at + 8), fragment[3] = rax_pair(at + 8 * lda + 8); \
        RAX_UNROLL                                                                                                   \
        for (int n = 0; n < tiles; n++)                                                                              \
            rax_mma(acc[n], fragment, B_PAIR(k + 2 * t, 8 * n + g), B_PAIR(k + 2 * t + 8, 8 * n + g));               \
    }
#else
#define A_PRODUCT(B_PAIR, B_AT)                                                                                      \
    for (int k = 0; k < K; k++) {                                                                                    \
        const float low = A_GET(a[g * lda + k]), high = A_GET(a[(g + 8) * lda + k]);                                 \
        RAX_UNROLL                                                                                                   \
        for (int n = 0; n < tiles; n++) {                                                                            \
            const float b0 = A_GET(B_AT(k, 8 * n + 2 * t)), b1 = A_GET(B_AT(k, 8 * n + 2 * t + 1));                  \
            acc[n][0] += low * b0, acc[n][1] += low * b1, acc[n][2] += high * b0, acc[n][3] += high * b1;            \
        }                                                                                                            \
    }
#endif
#define A_PAIR_NT(k, n) rax_pair(&b[(n) * ldb + (k)])
#define A_AT_NT(k, n)   b[(n) * ldb + (k)]
#define A_PAIR_NN(k, n) ((rax_u32)b[(k) * ldb + (n)] | (rax_u32)b[((k) + 1) * ldb + (n)] << 16)
#define A_AT_NN(k, n)   b[(k) * ldb + (n)]
A_TILE(rax_product_nt, A_PAIR_NT, A_AT_NT)
A_TILE(rax_product_nn, A_PAIR_NN, A_AT_NN)

/* Rows first.. of a matrix into shared memory, zeros where it ends. */
RAX_DEVICE void rax_load_tile(rax_element *to, const rax_element *from, rax_i64 row_stride, rax_i64 column_stride, int first, int count, int rows)
{
    for (int i = threadIdx.x; i < rows * A_DP; i += A_THREADS) {
        const int r = i / A_DP, c = i % A_DP;
        to[r * A_LD + c] = first + r < count && c < A_D ? from[(first + r) * row_stride + c * column_stride] : (rax_element)0;
    }
}

RAX_DEVICE void rax_clear(float (*acc)[4], int tiles)
{
    RAX_UNROLL
    for (int n = 0; n < tiles; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
}

/* A warp's 16 x A_BN values as an operand, in its own part of shared memory. */
RAX_DEVICE void rax_put_tile(rax_element *to, float (*value)[4])
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    rax_warp_wait();
    RAX_UNROLL
    for (int n = 0; n < A_NT; n++) {
        RAX_UNROLL
        for (int e = 0; e < 4; e++)
            to[(g + 8 * (e >> 1)) * A_LP + 8 * n + 2 * t + (e & 1)] = A_PUT(value[n][e]);
    }
    rax_warp_wait();
}

RAX_DEVICE float rax_row_max(float x) { x = fmaxf(x, rax_shuffle_f32(x, 1)); return fmaxf(x, rax_shuffle_f32(x, 2)); }
RAX_DEVICE float rax_row_sum(float x) { x += rax_shuffle_f32(x, 1); return x + rax_shuffle_f32(x, 2); }

RAX_DEVICE int rax_sees(int row, int key) { return row < A_ROWS && key < A_KEYS && (!A_CAUSAL || key <= row + A_KEYS - A_ROWS); }

/* What a weight is multiplied by: 0, or 1 / (1 - dropout). */
typedef struct { rax_u32 k0, k1, step, site; rax_u64 first; } rax_dropout;
RAX_DEVICE float rax_keep(const rax_dropout *d, int row, int key)
{
#if A_DROPS
    return rax_word(d->first + (rax_u64)row * A_KEYS + (rax_u64)key, d->site, d->step, d->k0, d->k1) >= A_THRESHOLD ? A_KEEP : 0.0f;
#else
    return 1.0f;
#endif
}
RAX_DEVICE rax_dropout rax_dropout_of(const int *seed, rax_i64 stride, const int *counter, rax_i64 site, int head)
{
    rax_dropout d;
    d.k0 = d.k1 = d.step = 0;
    d.site = (rax_u32)site;
    d.first = (rax_u64)head * A_ROWS * A_KEYS;
#if A_DROPS
    d.k0 = (rax_u32)seed[0], d.k1 = (rax_u32)seed[stride], d.step = (rax_u32)counter[0];
#endif
    return d;
}

/* -- forward ------------------------------------------------------------------------------------------------------------------ */

RAX_DEVICE void rax_attention_forward(const rax_element *q, const rax_element *k, const rax_element *v, rax_element *out, float *lse, rax_dropout drop, int tile, unsigned char *memory)
{
    rax_element *Q = (rax_element *)memory, *K = Q + A_BM * A_LD, *V = K + A_BN * A_LD, *P = V + A_BN * A_LD + (threadIdx.x >> 5) * 16 * A_LP;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, first = tile * A_BM, row = first + 16 * warp + g;
    const int seen = A_CAUSAL && first + A_BM + A_KEYS - A_ROWS < A_KEYS ? first + A_BM + A_KEYS - A_ROWS : A_KEYS;
    float O[A_DT][4], S[A_NT][4], most[2], sum[2];
    rax_clear(O, A_DT);
    most[0] = most[1] = -RAX_INFINITY, sum[0] = sum[1] = 0;
    rax_load_tile(Q, q, A_Q_ROW, A_Q_COLUMN, first, A_ROWS, A_BM);
    for (int j = 0; j < seen; j += A_BN) {
        rax_block_wait();
        rax_load_tile(K, k, A_K_ROW, A_K_COLUMN, j, A_KEYS, A_BN);
        rax_load_tile(V, v, A_V_ROW, A_V_COLUMN, j, A_KEYS, A_BN);
        rax_block_wait();
        rax_clear(S, A_NT);
        rax_product_nt(S, A_NT, Q + 16 * warp * A_LD, A_LD, K, A_LD, A_DP);
        RAX_UNROLL
        for (int half = 0; half < 2; half++) {
            float high = -RAX_INFINITY, total = 0;
            RAX_UNROLL
            for (int n = 0; n < A_NT; n++) {
                RAX_UNROLL
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    S[n][e] = rax_sees(row + 8 * half, j + 8 * n + 2 * t + (e & 1)) ? S[n][e] * A_SCALE : -RAX_INFINITY;
                    high = fmaxf(high, S[n][e]);
                }
            }
            high = fmaxf(most[half], rax_row_max(high));
            const float base = high == -RAX_INFINITY ? 0 : high, fade = expf(most[half] - base);
            RAX_UNROLL
            for (int n = 0; n < A_NT; n++) {
                RAX_UNROLL
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    const float p = expf(S[n][e] - base);
                    total += p;
                    S[n][e] = p * rax_keep(&drop, row + 8 * half, j + 8 * n + 2 * t + (e & 1));
                }
            }
            sum[half] = sum[half] * fade + total;
            most[half] = high;
            RAX_UNROLL
            for (int n = 0; n < A_DT; n++)
                O[n][2 * half] *= fade, O[n][2 * half + 1] *= fade;
        }
        rax_put_tile(P, S);
        rax_product_nn(O, A_DT, P, A_LP, V, A_LD, A_BN);
    }
    RAX_UNROLL
    for (int half = 0; half < 2; half++) {
        const float total = rax_row_sum(sum[half]);
        const int i = row + 8 * half;
        if (i >= A_ROWS)
            continue;
        if (t == 0)
            lse[i * (rax_i64)A_LSE_ROW] = most[half] + logf(total);
        RAX_UNROLL
        for (int n = 0; n < A_DT; n++) {
            RAX_UNROLL
            for (int e = 0; e < 2; e++)
                if (8 * n + 2 * t + e < A_D)
                    out[i * (rax_i64)A_OUT_ROW + (8 * n + 2 * t + e) * (rax_i64)A_OUT_COLUMN] = A_PUT(O[n][2 * half + e] / total);
        }
    }
}

/* -- backward ------------------------------------------------------------------------------------------------------------------- */

/* sum(dout out) - dlse of a row, by a warp. */
RAX_DEVICE void rax_attention_delta(const rax_element *out, const rax_element *dout, const float *dlse, float *delta, int row)
{
    float sum = 0;
    for (int c = threadIdx.x & 31; c < A_D && row < A_ROWS; c += 32)
        sum += A_GET(out[row * (rax_i64)A_OUT_ROW + c * (rax_i64)A_OUT_COLUMN]) * A_GET(dout[row * (rax_i64)A_DOUT_ROW + c * (rax_i64)A_DOUT_COLUMN]);
    sum = rax_warp_sum_f32(sum);
    if ((threadIdx.x & 31) == 0 && row < A_ROWS)
        delta[row] = sum - (dlse ? dlse[row * (rax_i64)A_DLSE_ROW] : 0);
}

RAX_DEVICE void rax_put_gradient(rax_grad *to, float (*acc)[4], float scale, int row, int rows, rax_i64 row_stride, rax_i64 column_stride)
{
    const int t = threadIdx.x & 3;
    RAX_UNROLL
    for (int n = 0; n < A_DT; n++) {
        RAX_UNROLL
        for (int e = 0; e < 4; e++) {
            const int i = row + 8 * (e >> 1), c = 8 * n + 2 * t + (e & 1);
            if (i < rows && c < A_D)
                to[i * row_stride + c * column_stride] = A_PUT_GRAD(acc[n][e] * scale);
        }
    }
}

RAX_DEVICE void rax_attention_rows(const rax_element *q, const rax_element *k, const rax_element *v, const rax_element *dout, const float *lse, const float *delta, rax_grad *dq,
                                   rax_dropout drop, int tile, unsigned char *memory)
{
    rax_element *Q = (rax_element *)memory, *G = Q + A_BM * A_LD, *K = G + A_BM * A_LD, *V = K + A_BN * A_LD, *P = V + A_BN * A_LD + (threadIdx.x >> 5) * 16 * A_LP;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, first = tile * A_BM, row = first + 16 * warp + g;
    const int seen = A_CAUSAL && first + A_BM + A_KEYS - A_ROWS < A_KEYS ? first + A_BM + A_KEYS - A_ROWS : A_KEYS;
    float D[A_DT][4], S[A_NT][4], W[A_NT][4], log_sum[2], dot[2];
    rax_clear(D, A_DT);
    RAX_UNROLL
    for (int half = 0; half < 2; half++) {
        log_sum[half] = row + 8 * half < A_ROWS ? lse[(row + 8 * half) * (rax_i64)A_LSE_ROW] : 0;
        dot[half] = row + 8 * half < A_ROWS ? delta[row + 8 * half] : 0;
    }
    rax_load_tile(Q, q, A_Q_ROW, A_Q_COLUMN, first, A_ROWS, A_BM);
    rax_load_tile(G, dout, A_DOUT_ROW, A_DOUT_COLUMN, first, A_ROWS, A_BM);
    for (int j = 0; j < seen; j += A_BN) {
        rax_block_wait();
        rax_load_tile(K, k, A_K_ROW, A_K_COLUMN, j, A_KEYS, A_BN);
        rax_load_tile(V, v, A_V_ROW, A_V_COLUMN, j, A_KEYS, A_BN);
        rax_block_wait();
        rax_clear(S, A_NT);
        rax_clear(W, A_NT);
        rax_product_nt(S, A_NT, Q + 16 * warp * A_LD, A_LD, K, A_LD, A_DP);
        rax_product_nt(W, A_NT, G + 16 * warp * A_LD, A_LD, V, A_LD, A_DP);
        RAX_UNROLL
        for (int n = 0; n < A_NT; n++) {
            RAX_UNROLL
            for (int e = 0; e < 4; e++) {
                const int i = row + 8 * (e >> 1), key = j + 8 * n + 2 * t + (e & 1);
                const float p = rax_sees(i, key) ? expf(S[n][e] * A_SCALE - log_sum[e >> 1]) : 0;
                S[n][e] = p * (W[n][e] * rax_keep(&drop, i, key) - dot[e >> 1]);
            }
        }
        rax_put_tile(P, S);
        rax_product_nn(D, A_DT, P, A_LP, K, A_LD, A_BN);
    }
    rax_put_gradient(dq, D, A_SCALE, row, A_ROWS, A_DQ_ROW, A_DQ_COLUMN);
}

/* Rows of the tiles are keys, columns are queries. */
RAX_DEVICE void rax_attention_keys(const rax_element *q, const rax_element *k, const rax_element *v, const rax_element *dout, const float *lse, const float *delta, rax_grad *dk,
                                   rax_grad *dv, rax_dropout drop, int tile, unsigned char *memory)
{
    rax_element *K = (rax_element *)memory, *V = K + A_BM * A_LD, *Q = V + A_BM * A_LD, *G = Q + A_BN * A_LD, *all = G + A_BN * A_LD, *P = all + (threadIdx.x >> 5) * 16 * A_LP;
    float *log_sum = (float *)(all + A_BM * A_LP), *dot = log_sum + A_BN;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, first = tile * A_BM, key = first + 16 * warp + g;
    const int begin = A_CAUSAL && first - (A_KEYS - A_ROWS) > 0 ? (first - (A_KEYS - A_ROWS)) / A_BN * A_BN : 0;
    float DK[A_DT][4], DV[A_DT][4], S[A_NT][4], W[A_NT][4];
    rax_clear(DK, A_DT);
    rax_clear(DV, A_DT);
    rax_load_tile(K, k, A_K_ROW, A_K_COLUMN, first, A_KEYS, A_BM);
    rax_load_tile(V, v, A_V_ROW, A_V_COLUMN, first, A_KEYS, A_BM);
    for (int i = begin; i < A_ROWS; i += A_BN) {
        rax_block_wait();
        rax_load_tile(Q, q, A_Q_ROW, A_Q_COLUMN, i, A_ROWS, A_BN);
        rax_load_tile(G, dout, A_DOUT_ROW, A_DOUT_COLUMN, i, A_ROWS, A_BN);
        for (int r = threadIdx.x; r < A_BN; r += A_THREADS) {
            log_sum[r] = i + r < A_ROWS ? lse[(i + r) * (rax_i64)A_LSE_ROW] : 0;
            dot[r] = i + r < A_ROWS ? delta[i + r] : 0;
        }
        rax_block_wait();
        rax_clear(S, A_NT);
        rax_clear(W, A_NT);
        rax_product_nt(S, A_NT, K + 16 * warp * A_LD, A_LD, Q, A_LD, A_DP);
        rax_product_nt(W, A_NT, V + 16 * warp * A_LD, A_LD, G, A_LD, A_DP);
        RAX_UNROLL
        for (int n = 0; n < A_NT; n++) {
            RAX_UNROLL
            for (int e = 0; e < 4; e++) {
                const int column = 8 * n + 2 * t + (e & 1), j = key + 8 * (e >> 1);
                const float p = rax_sees(i + column, j) ? expf(S[n][e] * A_SCALE - log_sum[column]) : 0, keep = rax_keep(&drop, i + column, j);
                S[n][e] = p * keep;
                W[n][e] = p * (W[n][e] * keep - dot[column]);
            }
        }
        rax_put_tile(P, S);
        rax_product_nn(DV, A_DT, P, A_LP, G, A_LD, A_BN);
        rax_put_tile(P, W);
        rax_product_nn(DK, A_DT, P, A_LP, Q, A_LD, A_BN);
    }
    rax_put_gradient(dk, DK, A_SCALE, key, A_KEYS, A_DK_ROW, A_DK_COLUMN);
    rax_put_gradient(dv, DV, 1, key, A_KEYS, A_DV_ROW, A_DV_COLUMN);
}
