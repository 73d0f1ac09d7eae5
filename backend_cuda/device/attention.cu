/* Attention, forward and backward, without a matrix of rows x keys in memory (Dao, FlashAttention-2, arXiv:2307.08691).
 *
 * A block has 16 A_MT rows of queries a warp and goes through the keys by tiles, keeping of each row the sum of its weights so far and what they are powers over, the maximum or
 * a little less. The gradient is two kernels, neither of which adds to what another block adds to: one by rows for dq, one by keys for dk and dv; both compute the
 * weights again from lse.
 *
 * A warp's tile is 16 rows, and it has A_MT of them, which share what is loaded of the other operand: with one, shared memory has more to do than
 * the tensor cores. Lane l holds of every 8 columns the elements (l/4, 2(l%4)), (l/4, 2(l%4)+1) and the same 8 rows below: the accumulators of
 * mma.m16n8k16, which are the left operand's fragments of the next product as they are. f32, and bf16 before sm_80, has the same tiles by FMA.
 *
 * What comes before this text: A_BF16, A_GRAD_BF16, A_MMA and A_ASYNC (what the card has), A_D, A_DP (a multiple of 16), A_WARPS, A_MT (1 where there
 * is no mma), A_BN, A_STAGES, A_HELD (whether a warp's own rows of a left operand stay in registers), A_ROWS, A_KEYS, A_HEADS, A_CAUSAL, A_SCALE,
 * A_SCALE_LOG2 (over ln 2), A_DROPS, A_THRESHOLD, A_KEEP, A_DELTA_LANES, and of each operand A_*_ROW, A_*_COLUMN, its strides, and A_*_WIDE, whether
 * 16 bytes of a row are one access. */

#if A_BF16
typedef rax_u16 rax_element;
#define A_GET(x) rax_from_bf16(x)
#define A_PUT(x) rax_to_bf16(x)
enum { A_PAD = 8, A_CHUNK = 8 };
#else
typedef float rax_element;
#define A_GET(x) (x)
#define A_PUT(x) (x)
enum { A_PAD = 4, A_CHUNK = 4 };
#endif
#if A_GRAD_BF16
typedef rax_u16 rax_grad;
#define A_PUT_GRAD(x) rax_to_bf16(x)
#else
typedef float rax_grad;
#define A_PUT_GRAD(x) (x)
#endif
enum {
    A_WM = 16 * A_MT, A_BM = A_WM * A_WARPS, A_THREADS = 32 * A_WARPS, A_LD = A_DP + A_PAD, A_LP = A_BN + A_PAD,
    A_NT = A_BN / 8, A_DT = A_DP / 8, A_HOLDS = A_HELD ? A_MT * A_DP / 16 : 1
};
#define A_LOG2E 1.4426950408889634f
#define A_LN2 0.6931471805599453f
#define A_LARGEST 3.40282347e38f

/* Of a number that is known to be one for the whole warp branches need no care of lanes that took others. */
#ifndef RAX_EMULATED
#define rax_warp_index() __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0)
#else
#define rax_warp_index() ((int)threadIdx.x >> 5)
#endif

/* -- products of tiles ------------------------------------------------------------------------------------------------------ */

/* acc[A_MT][n tiles] += A[A_WM][K] B^T for B[8 n][K], and += A[A_WM][A_BN] B for B[A_BN][8 n], where A is a warp's values as they lie in its accumulators. Else
 * operands are in shared memory. scratch: 16 x A_LP of the warp's own, where there is no mma. */
#if A_MMA
#ifndef RAX_EMULATED
RAX_DEVICE void rax_mma(float *c, const rax_u32 *a, rax_u32 b0, rax_u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* Four 8 x 8 matrices, of whose rows lane 8 i + r says where row r of matrix i is; lane l gets elements 2(l%4) and 2(l%4)+1 of row l/4, or where transposed of
 * column l/4. */
RAX_DEVICE void rax_matrices(rax_u32 *to, const rax_u16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"((rax_u32)__cvta_generic_to_shared(row)) : "memory");
}
RAX_DEVICE void rax_matrices_transposed(rax_u32 *to, const rax_u16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"((rax_u32)__cvta_generic_to_shared(row)) : "memory");
}
#endif

RAX_DEVICE void rax_left(rax_u32 (*f)[4], const rax_element *a, int k)
{
    const int lane = threadIdx.x & 31;
    RAX_UNROLL
    for (int m = 0; m < A_MT; m++)
        rax_matrices(f[m], a + (16 * m + (lane & 15)) * A_LD + (lane >> 4) * 8 + k);
}
RAX_DEVICE void rax_hold(rax_u32 (*held)[4], const rax_element *a)
{
    RAX_UNROLL
    for (int k = 0; A_HELD && k < A_DP; k += 16)
        rax_left(held + A_MT * (k / 16), a, k);
}

RAX_DEVICE void rax_product_nt(float (*acc)[4], int tiles, const rax_element *a, rax_u32 (*held)[4], const rax_element *b)
{
    const int lane = threadIdx.x & 31;
    const rax_element *b_row = b + ((lane & 7) + (lane >> 4) * 8) * A_LD + (lane >> 3 & 1) * 8;
    RAX_UNROLL
    for (int k = 0; k < A_DP; k += 16) {
        rax_u32 loaded[A_MT][4], (*const f)[4] = A_HELD ? held + A_MT * (k / 16) : loaded, g[4];
        if (!A_HELD)
            rax_left(loaded, a, k);
        RAX_UNROLL
        for (int n = 0; n < tiles; n += 2) {
            rax_matrices(g, b_row + 8 * n * A_LD + k);
            RAX_UNROLL
            for (int m = 0; m < A_MT; m++) {
                rax_mma(acc[m * tiles + n], f[m], g[0], g[1]);
                rax_mma(acc[m * tiles + n + 1], f[m], g[2], g[3]);
            }
        }
    }
}

RAX_DEVICE void rax_product_values(float (*acc)[4], int tiles, float (*value)[4], const rax_element *b, rax_element *scratch)
{
    const int lane = threadIdx.x & 31;
    const rax_element *b_row = b + ((lane & 7) + (lane >> 3 & 1) * 8) * A_LD + (lane >> 4) * 8;
    RAX_UNROLL
    for (int k = 0; k < A_BN; k += 16) {
        rax_u32 f[A_MT][4], g[4];
        RAX_UNROLL
        for (int m = 0; m < A_MT; m++) {
            const float *low = value[m * A_NT + k / 8], *high = value[m * A_NT + k / 8 + 1];
            f[m][0] = rax_two_to_bf16(low[0], low[1]), f[m][1] = rax_two_to_bf16(low[2], low[3]);
            f[m][2] = rax_two_to_bf16(high[0], high[1]), f[m][3] = rax_two_to_bf16(high[2], high[3]);
        }
        RAX_UNROLL
        for (int n = 0; n < tiles; n += 2) {
            rax_matrices_transposed(g, b_row + k * A_LD + 8 * n);
            RAX_UNROLL
            for (int m = 0; m < A_MT; m++) {
                rax_mma(acc[m * tiles + n], f[m], g[0], g[1]);
                rax_mma(acc[m * tiles + n + 1], f[m], g[2], g[3]);
            }
        }
    }
}
#else
RAX_DEVICE void rax_hold(rax_u32 (*held)[4], const rax_element *a) { }

RAX_DEVICE void rax_product_nt(float (*acc)[4], int tiles, const rax_element *a, rax_u32 (*held)[4], const rax_element *b)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    for (int k = 0; k < A_DP; k++) {
        const float low = A_GET(a[g * A_LD + k]), high = A_GET(a[(g + 8) * A_LD + k]);
        RAX_UNROLL
        for (int n = 0; n < tiles; n++) {
            const float b0 = A_GET(b[(8 * n + 2 * t) * A_LD + k]), b1 = A_GET(b[(8 * n + 2 * t + 1) * A_LD + k]);
            acc[n][0] += low * b0, acc[n][1] += low * b1, acc[n][2] += high * b0, acc[n][3] += high * b1;
        }
    }
}

RAX_DEVICE void rax_product_values(float (*acc)[4], int tiles, float (*value)[4], const rax_element *b, rax_element *scratch)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    rax_warp_wait();
    RAX_UNROLL
    for (int n = 0; n < A_NT; n++) {
        RAX_UNROLL
        for (int e = 0; e < 4; e++)
            scratch[(g + 8 * (e >> 1)) * A_LP + 8 * n + 2 * t + (e & 1)] = A_PUT(value[n][e]);
    }
    rax_warp_wait();
    for (int k = 0; k < A_BN; k++) {
        const float low = A_GET(scratch[g * A_LP + k]), high = A_GET(scratch[(g + 8) * A_LP + k]);
        RAX_UNROLL
        for (int n = 0; n < tiles; n++) {
            const float b0 = A_GET(b[k * A_LD + 8 * n + 2 * t]), b1 = A_GET(b[k * A_LD + 8 * n + 2 * t + 1]);
            acc[n][0] += low * b0, acc[n][1] += low * b1, acc[n][2] += high * b0, acc[n][3] += high * b1;
        }
    }
}
#endif

/* -- tiles in memory ----------------------------------------------------------------------------------------------------------- */

/* 16 bytes to shared memory, or zeros there: asynchronously from sm_80 on, so that they are there after rax_copies_wait, for others after a barrier too. */
#ifndef RAX_EMULATED
#if A_ASYNC
RAX_DEVICE void rax_copy_16(void *to, const void *from, int is_there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"((rax_u32)__cvta_generic_to_shared(to)), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
RAX_DEVICE void rax_copy_4(void *to, const void *from, int is_there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"((rax_u32)__cvta_generic_to_shared(to)), "l"(from), "r"(is_there ? 4 : 0) : "memory");
}
RAX_DEVICE void rax_copies_wait(void) { asm volatile("cp.async.wait_all;" : : : "memory"); }
#else
RAX_DEVICE void rax_copy_16(void *to, const void *from, int is_there)
{
    rax_i32x4 x = { { 0, 0, 0, 0 } };
    if (is_there)
        x = *(const rax_i32x4 *)from;
    *(rax_i32x4 *)to = x;
}
RAX_DEVICE void rax_copy_4(void *to, const void *from, int is_there) { *(rax_u32 *)to = is_there ? *(const rax_u32 *)from : 0; }
RAX_DEVICE void rax_copies_wait(void) { }
#endif
#endif

/* Rows first.. of a matrix into shared memory, zeros where it ends. wide: 16 bytes at a time, for rows and places that are multiples of that; a thread has
 * every STEP-th row, so that all its addresses are one and what is known of the others. */
RAX_DEVICE void rax_load_tile(rax_element *to, const rax_element *from, rax_i64 row_stride, rax_i64 column_stride, int wide, int first, int count, int rows)
{
    enum { CHUNKS = A_DP / A_CHUNK, STEP = A_THREADS / CHUNKS };
    if (wide) {
        const int r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS * A_CHUNK;
        const rax_element *const at = from + (first + r) * row_stride + c;
        RAX_UNROLL
        for (int s = 0; s < rows; s += STEP) {
            const int is_there = (count % rows == 0 || first + r + s < count) && (A_D == A_DP || c < A_D);
            if ((A_THREADS % CHUNKS == 0 || r < STEP) && (rows % STEP == 0 || r + s < rows))
                rax_copy_16(to + (r + s) * A_LD + c, is_there ? at + s * row_stride : from, is_there);
        }
    } else {
        for (int i = threadIdx.x; i < rows * A_DP; i += A_THREADS) {
            const int r = i / A_DP, c = i % A_DP;
            to[r * A_LD + c] = first + r < count && c < A_D ? from[(first + r) * row_stride + c * column_stride] : (rax_element)0;
        }
    }
}
#define A_LOAD(to, from, NAME, first, count, rows) rax_load_tile(to, from, A_##NAME##_ROW, A_##NAME##_COLUMN, A_##NAME##_WIDE, first, count, rows)

RAX_DEVICE void rax_clear(float (*acc)[4], int tiles)
{
    RAX_UNROLL
    for (int n = 0; n < tiles; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
}

/* A warp's 16 x A_DP values to memory, rows row and row + 8 of them this lane's; scaled by one number for each. */
#define A_STORE(name, type, PUT)                                                                                     \
    RAX_DEVICE void name(type *to, float (*acc)[4], const float *scale, int row, int rows, rax_i64 row_stride, rax_i64 column_stride, int wide) \
    {                                                                                                                \
        typedef struct RAX_ALIGN(2 * sizeof(type)) { type v[2]; } both;                                              \
        const int t = threadIdx.x & 3;                                                                               \
        RAX_UNROLL                                                                                                   \
        for (int n = 0; n < A_DT; n++) {                                                                             \
            RAX_UNROLL                                                                                               \
            for (int half = 0; half < 2; half++) {                                                                   \
                const int i = row + 8 * half, c = 8 * n + 2 * t;                                                     \
                const type low = PUT(acc[n][2 * half] * scale[half]), high = PUT(acc[n][2 * half + 1] * scale[half]); \
                if (i >= rows || c >= A_D)                                                                           \
                    continue;                                                                                        \
                if (wide) {                                                                                          \
                    both x;                                                                                          \
                    x.v[0] = low, x.v[1] = high;                                                                     \
                    *(both *)(to + i * row_stride + c) = x;                                                          \
                } else {                                                                                             \
                    to[i * row_stride + c * column_stride] = low;                                                    \
                    if (c + 1 < A_D)                                                                                 \
                        to[i * row_stride + (c + 1) * column_stride] = high;                                         \
                }                                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
    }
A_STORE(rax_store_out, rax_element, A_PUT)
A_STORE(rax_store_grad, rax_grad, A_PUT_GRAD)

RAX_DEVICE float rax_row_max(float x) { x = fmaxf(x, rax_shuffle_f32(x, 1)); return fmaxf(x, rax_shuffle_f32(x, 2)); }
RAX_DEVICE float rax_row_sum(float x) { x += rax_shuffle_f32(x, 1); return x + rax_shuffle_f32(x, 2); }

/* So many rows from this one on see all of so many keys: most tiles of a warp, which then needs no comparisons. Rows and keys that are not there hold
 * zeros; what a key gets of such a row is nothing, and what a row sees of such a key is left out here. */
RAX_DEVICE int rax_all_see(int row, int key, int keys) { return (A_KEYS % A_BN == 0 || key + keys <= A_KEYS) && (!A_CAUSAL || key + keys - 1 <= row + A_KEYS - A_ROWS); }

/* A warp's rows x keys from `row` and `key` on, those of this lane: put to value where a row does not see a key. */
RAX_DEVICE void rax_hide(float (*S)[4], float value, int row, int key)
{
    const int ahead = row + A_KEYS - A_ROWS - key, left = A_KEYS - key;
    RAX_UNROLL
    for (int n = 0; n < A_MT * A_NT; n++) {
        RAX_UNROLL
        for (int e = 0; e < 4; e++) {
            const int i = 16 * (n / A_NT) + 8 * (e >> 1), j = 8 * (n % A_NT) + (e & 1);
            S[n][e] = (A_CAUSAL && j - i > ahead) || (A_KEYS % A_BN && j >= left) ? value : S[n][e];
        }
    }
}

/* No row up to this one sees a key from this one on. */
RAX_DEVICE int rax_sees_nothing(int row, int key) { return A_CAUSAL && key > row + A_KEYS - A_ROWS; }

/* Which weights dropout leaves: a bit for each of those that a lane has of some rows, in the order of columns, 2 n + e of a row. What is left is
 * multiplied by A_KEEP, 1 / (1 - dropout), where all is added up. A block of random words is for four keys of a row, where rows are multiples of that;
 * the lanes that have them make a block each and exchange bits. */
typedef struct { rax_u32 k0, k1, step, site; rax_u64 first; } rax_dropout;
RAX_DEVICE rax_u32 rax_kept_one(const rax_dropout *d, int row, int key)
{
    return rax_word(d->first + (rax_u64)row * A_KEYS + (rax_u64)key, d->site, d->step, d->k0, d->k1) >= A_THRESHOLD;
}
RAX_DEVICE rax_u32 rax_kept_four(const rax_dropout *d, int row, int key)
{
    const rax_words words = rax_philox((d->first + (rax_u64)row * A_KEYS) / 4 + (rax_u32)(key >> 2), d->site, d->step, d->k0, d->k1);
    return (words.word[0] >= A_THRESHOLD ? 1 : 0) | (words.word[1] >= A_THRESHOLD ? 2 : 0) | (words.word[2] >= A_THRESHOLD ? 4 : 0) | (words.word[3] >= A_THRESHOLD ? 8 : 0);
}
/* Squares of bits, half of them lanes: the bits in low of a lane with this bit of its number set change places with those `shift` above of the lane without. */
RAX_DEVICE rax_u32 rax_exchange(rax_u32 bits, int lane_bit, int shift, rax_u32 low)
{
    const rax_u32 other = (rax_u32)rax_shuffle_i32((int)bits, lane_bit);
    return threadIdx.x & lane_bit ? (bits & ~low) | (other >> shift & low) : (bits & low) | (other << shift & ~low);
}
/* Of a row, where columns are keys; key: the lane's first. */
RAX_DEVICE rax_u32 rax_kept_in_row(const rax_dropout *d, int row, int key)
{
    rax_u32 kept = 0;
    if (!A_DROPS)
        return ~0u;
    if (A_KEYS % 4 == 0) {                               /* the even lane makes those of an even n, the odd lane of the next */
        RAX_UNROLL
        for (int n = 0; n < A_NT; n += 2)
            kept |= rax_kept_four(d, row, key + 8 * (n + (int)(threadIdx.x & 1))) << 2 * n;
        return rax_exchange(kept, 1, 2, 0x33333333);
    }
    RAX_UNROLL
    for (int n = 0; n < 2 * A_NT; n++)
        kept |= rax_kept_one(d, row, key + 8 * (n >> 1) + (n & 1)) << n;
    return kept;
}
/* Of all of a warp's rows, where these are keys and columns are queries; from this lane's first key and query on. 2 A_NT bits a row. */
RAX_DEVICE rax_u32 rax_kept_in_columns(const rax_dropout *d, int query, int key)
{
    rax_u32 kept = 0;
    if (!A_DROPS)
        return ~0u;
    RAX_UNROLL
    for (int i = 0; i < 2 * A_MT; i++) {
        if (A_KEYS % 4 == 0) {                           /* of four lanes, whose keys are side by side, each makes those of one of four queries */
            RAX_UNROLL
            for (int n = 0; n < A_NT; n += 2)
                kept |= rax_kept_four(d, query + 8 * (n + (int)(threadIdx.x >> 3 & 1)) + (int)(threadIdx.x >> 2 & 1), key + 8 * i) << (2 * A_NT * i + 2 * n);
        } else {
            RAX_UNROLL
            for (int n = 0; n < 2 * A_NT; n++)
                kept |= rax_kept_one(d, query + 8 * (n >> 1) + (n & 1), key + 8 * i) << (2 * A_NT * i + n);
        }
    }
    return A_KEYS % 4 ? kept : rax_exchange(rax_exchange(kept, 4, 1, 0x55555555), 8, 2, 0x33333333);
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

/* Tile j of keys and values, into one of the A_STAGES places for both. */
RAX_DEVICE void rax_load_keys(rax_element *to, const rax_element *k, const rax_element *v, int j)
{
    A_LOAD(to, k, K, j, A_KEYS, A_BN);
    A_LOAD(to + A_BN * A_LD, v, V, j, A_KEYS, A_BN);
}

/* Of 16 rows from `row` on the keys that they may see end here. */
RAX_DEVICE int rax_seen(int row, int rows) { return A_CAUSAL && row + rows + A_KEYS - A_ROWS < A_KEYS ? row + rows + A_KEYS - A_ROWS : A_KEYS; }

/* Weights are powers of two: exp(x) is exp2(x / ln 2), and 1 / ln 2 is part of the scale. What is taken from a row's scores, `most`, is replaced by
 * their maximum where that is more by 8, so that weights are up to 256, and what is there already is seldom multiplied. A weight below 2^-126 is 0,
 * which nothing beside a row's largest, 1 or more, can tell. While a tile is worked on the next one is on its way. */
RAX_DEVICE void rax_attention_forward(const rax_element *q, const rax_element *k, const rax_element *v, rax_element *out, float *lse, rax_dropout drop,
                                      int tile, unsigned char *memory)
{
    rax_element *Q = (rax_element *)memory, *stages = Q + A_BM * A_LD, *P = stages + 2 * A_STAGES * A_BN * A_LD + (threadIdx.x >> 5) * 16 * A_LP;
    const int lane = threadIdx.x & 31, warp = rax_warp_index(), g = lane >> 2, t = lane & 3, first = tile * A_BM, row = first + A_WM * warp + g;
    const int seen = rax_seen(first, A_BM);
    const float unit = A_SCALE_LOG2 > 0 ? A_SCALE_LOG2 : 1;              /* a positive scale leaves the largest the largest: it is part of subtracting that */
    float O[A_MT * A_DT][4], S[A_MT * A_NT][4], most[2 * A_MT], sum[2 * A_MT], scale[2 * A_MT];
    rax_u32 held[A_HOLDS][4];
    int stage = 0;
    rax_clear(O, A_MT * A_DT);
    RAX_UNROLL
    for (int i = 0; i < 2 * A_MT; i++)
        most[i] = -A_LARGEST, sum[i] = 0;
    A_LOAD(Q, q, Q, first, A_ROWS, A_BM);
    if (A_STAGES == 2)
        rax_load_keys(stages, k, v, 0);
    rax_copies_wait();
    rax_block_wait();
    rax_hold(held, Q + A_WM * warp * A_LD);
    for (int j = 0; j < seen; j += A_BN) {
        const rax_element *K = stages + 2 * stage * A_BN * A_LD, *V = K + A_BN * A_LD;
        if (A_STAGES == 1) {
            rax_block_wait();
            rax_load_keys(stages, k, v, j);
        }
        rax_copies_wait();
        rax_block_wait();
        stage ^= A_STAGES - 1;
        if (A_STAGES == 2 && j + A_BN < seen)
            rax_load_keys(stages + 2 * stage * A_BN * A_LD, k, v, j + A_BN);
        if (rax_sees_nothing(first + A_WM * (warp + 1) - 1, j))
            continue;
        rax_u32 kept[2 * A_MT];
        RAX_UNROLL
        for (int half = 0; half < 2 * A_MT; half++)
            kept[half] = rax_kept_in_row(&drop, row + 8 * half, j + 2 * t);
        rax_clear(S, A_MT * A_NT);
        rax_product_nt(S, A_NT, Q + A_WM * warp * A_LD, held, K);
        RAX_UNROLL
        for (int n = 0; !(A_SCALE_LOG2 > 0) && n < A_MT * A_NT; n++) {
            RAX_UNROLL
            for (int e = 0; e < 4; e++)
                S[n][e] *= A_SCALE_LOG2;
        }
        if (!rax_all_see(first + A_WM * warp, j, A_BN))
            rax_hide(S, -RAX_INFINITY, row, j + 2 * t);
        float high[2 * A_MT];
        int grows = 0;
        RAX_UNROLL
        for (int half = 0; half < 2 * A_MT; half++) {
            float (*const mine)[4] = S + (half >> 1) * A_NT;
            const int e = 2 * (half & 1);
            high[half] = fmaxf(mine[0][e], mine[0][e + 1]);
            RAX_UNROLL
            for (int n = 1; n < A_NT; n++)
                high[half] = fmaxf(high[half], fmaxf(mine[n][e], mine[n][e + 1]));
            high[half] = rax_row_max(high[half]) * unit;
            grows |= high[half] > most[half] + 8;
        }
        if (grows) {
            RAX_UNROLL
            for (int half = 0; half < 2 * A_MT; half++) {
                float (*const out_of)[4] = O + (half >> 1) * A_DT, now = fmaxf(most[half], high[half]), fade = rax_exp2(most[half] - now);
                const int e = 2 * (half & 1);
                most[half] = now;
                sum[half] *= fade;
                RAX_UNROLL
                for (int n = 0; n < A_DT; n++)
                    out_of[n][e] *= fade, out_of[n][e + 1] *= fade;
            }
        }
        RAX_UNROLL
        for (int half = 0; half < 2 * A_MT; half++) {
            float (*const mine)[4] = S + (half >> 1) * A_NT;
            RAX_UNROLL
            for (int n = 0; n < 2 * A_NT; n++) {
                float *const x = &mine[n >> 1][2 * (half & 1) + (n & 1)], p = rax_exp2(*x * unit - most[half]);
                sum[half] += p;
                *x = kept[half] >> n & 1 ? p : 0;
            }
        }
        rax_product_values(O, A_DT, S, V, P);
    }
    RAX_UNROLL
    for (int half = 0; half < 2 * A_MT; half++) {
        const float total = rax_row_sum(sum[half]);
        scale[half] = A_KEEP / total;
        if (t == 0 && row + 8 * half < A_ROWS)
            lse[(row + 8 * half) * (rax_i64)A_LSE_ROW] = (most[half] + log2f(total)) * A_LN2;
    }
    RAX_UNROLL
    for (int m = 0; m < A_MT; m++)
        rax_store_out(out, O + m * A_DT, scale + 2 * m, row + 16 * m, A_ROWS, A_OUT_ROW, A_OUT_COLUMN, A_OUT_WIDE);
}

/* -- backward ------------------------------------------------------------------------------------------------------------------- */

/* What a lane of A_DELTA_LANES has of sum(dout out) of a row, of the last row where there is none. */
RAX_DEVICE float rax_delta_part(const rax_element *out, const rax_element *dout, int row)
{
    typedef struct RAX_ALIGN(16) { rax_element v[A_CHUNK]; } chunk;
    enum { WIDE = A_OUT_WIDE && A_DOUT_WIDE, EACH_HAS = WIDE ? A_CHUNK : 1, STEP = A_DELTA_LANES * EACH_HAS };
    const int first = threadIdx.x % A_DELTA_LANES * EACH_HAS;
    const rax_i64 i = row < A_ROWS ? row : A_ROWS - 1;
    float sum = 0;
    RAX_UNROLL
    for (int s = 0; s < A_D; s += STEP) {
        const int c = first + s;
        if (A_D % STEP && c >= A_D)
            continue;
        if (WIDE) {
            const chunk x = *(const chunk *)(out + i * A_OUT_ROW + c), y = *(const chunk *)(dout + i * A_DOUT_ROW + c);
            RAX_UNROLL
            for (int e = 0; e < A_CHUNK; e++)
                sum += A_GET(x.v[e]) * A_GET(y.v[e]);
        } else {
            sum += A_GET(out[i * A_OUT_ROW + c * (rax_i64)A_OUT_COLUMN]) * A_GET(dout[i * A_DOUT_ROW + c * (rax_i64)A_DOUT_COLUMN]);
        }
    }
    return sum;
}
/* (sum(dout out) - dlse) / A_KEEP of each row of a block. All is read before anything is written, so that no read waits for another. */
RAX_DEVICE void rax_attention_delta(const rax_element *out, const rax_element *dout, const float *dlse, float *delta, int first)
{
    enum { STEP = A_THREADS / A_DELTA_LANES, STEPS = (A_BM + STEP - 1) / STEP };
    const int own = threadIdx.x / A_DELTA_LANES;
    float sum[STEPS];
    RAX_UNROLL
    for (int s = 0; s < STEPS; s++)
        sum[s] = rax_delta_part(out, dout, first + own + STEP * s);
    RAX_UNROLL
    for (int s = 0; s < STEPS; s++) {
        const int r = own + STEP * s, row = first + r;
        RAX_UNROLL
        for (int mask = A_DELTA_LANES / 2; mask; mask >>= 1)
            sum[s] += rax_shuffle_f32(sum[s], mask);
        if (threadIdx.x % A_DELTA_LANES == 0 && r < A_BM && row < A_ROWS)
            delta[row] = (sum[s] - (dlse ? dlse[row * (rax_i64)A_DLSE_ROW] : 0)) * (1 / A_KEEP);
    }
}

/* Leaves delta for rax_attention_keys. */
RAX_DEVICE void rax_attention_rows(const rax_element *q, const rax_element *k, const rax_element *v, const rax_element *out, const rax_element *dout,
                                   const float *lse, const float *dlse, float *delta, rax_grad *dq, rax_dropout drop, int tile, unsigned char *memory)
{
    rax_element *Q = (rax_element *)memory, *G = Q + A_BM * A_LD, *stages = G + A_BM * A_LD, *P = stages + 2 * A_STAGES * A_BN * A_LD + (threadIdx.x >> 5) * 16 * A_LP;
    const int lane = threadIdx.x & 31, warp = rax_warp_index(), g = lane >> 2, t = lane & 3, first = tile * A_BM, row = first + A_WM * warp + g;
    const int seen = rax_seen(first, A_BM);
    float D[A_MT * A_DT][4], S[A_MT * A_NT][4], W[A_MT * A_NT][4], log_sum[2 * A_MT], dot[2 * A_MT];
    rax_u32 held_q[A_HOLDS][4], held_g[A_HOLDS][4];
    int stage = 0;
    rax_clear(D, A_MT * A_DT);
    A_LOAD(Q, q, Q, first, A_ROWS, A_BM);
    A_LOAD(G, dout, DOUT, first, A_ROWS, A_BM);
    if (A_STAGES == 2)
        rax_load_keys(stages, k, v, 0);
    rax_attention_delta(out, dout, dlse, delta, first);
    rax_copies_wait();
    rax_block_wait();
    RAX_UNROLL
    for (int half = 0; half < 2 * A_MT; half++) {
        log_sum[half] = row + 8 * half < A_ROWS ? lse[(row + 8 * half) * (rax_i64)A_LSE_ROW] * A_LOG2E : 0;
        dot[half] = row + 8 * half < A_ROWS ? delta[row + 8 * half] : 0;
    }
    rax_hold(held_q, Q + A_WM * warp * A_LD);
    rax_hold(held_g, G + A_WM * warp * A_LD);
    for (int j = 0; j < seen; j += A_BN) {
        const rax_element *K = stages + 2 * stage * A_BN * A_LD, *V = K + A_BN * A_LD;
        if (A_STAGES == 1) {
            rax_block_wait();
            rax_load_keys(stages, k, v, j);
        }
        rax_copies_wait();
        rax_block_wait();
        stage ^= A_STAGES - 1;
        if (A_STAGES == 2 && j + A_BN < seen)
            rax_load_keys(stages + 2 * stage * A_BN * A_LD, k, v, j + A_BN);
        if (rax_sees_nothing(first + A_WM * (warp + 1) - 1, j))
            continue;
        rax_u32 kept[2 * A_MT];
        RAX_UNROLL
        for (int half = 0; half < 2 * A_MT; half++)
            kept[half] = rax_kept_in_row(&drop, row + 8 * half, j + 2 * t);
        rax_clear(S, A_MT * A_NT);
        rax_clear(W, A_MT * A_NT);
        rax_product_nt(S, A_NT, Q + A_WM * warp * A_LD, held_q, K);
        rax_product_nt(W, A_NT, G + A_WM * warp * A_LD, held_g, V);
        RAX_UNROLL
        for (int n = 0; n < A_MT * A_NT; n++) {
            RAX_UNROLL
            for (int e = 0; e < 4; e++)
                S[n][e] = rax_exp2(S[n][e] * A_SCALE_LOG2 - log_sum[2 * (n / A_NT) + (e >> 1)]);
        }
        if (!rax_all_see(first + A_WM * warp, j, A_BN))
            rax_hide(S, 0, row, j + 2 * t);
        RAX_UNROLL
        for (int half = 0; half < 2 * A_MT; half++) {
            RAX_UNROLL
            for (int n = 0; n < 2 * A_NT; n++) {
                const int at = (half >> 1) * A_NT + (n >> 1), e = 2 * (half & 1) + (n & 1);
                S[at][e] *= (kept[half] >> n & 1 ? W[at][e] : 0) - dot[half];
            }
        }
        rax_product_values(D, A_DT, S, K, P);
    }
    const float scale[2] = { A_SCALE * A_KEEP, A_SCALE * A_KEEP };
    RAX_UNROLL
    for (int m = 0; m < A_MT; m++)
        rax_store_grad(dq, D + m * A_DT, scale, row + 16 * m, A_ROWS, A_DQ_ROW, A_DQ_COLUMN, A_DQ_WIDE);
}

/* Tile i of queries and of dout, and what a row has one of. */
RAX_DEVICE void rax_load_queries(rax_element *to, float *log_sum, const rax_element *q, const rax_element *dout, const float *lse, const float *delta, int i)
{
    A_LOAD(to, q, Q, i, A_ROWS, A_BN);
    A_LOAD(to + A_BN * A_LD, dout, DOUT, i, A_ROWS, A_BN);
    if (threadIdx.x < A_BN) {
        const int r = threadIdx.x, is_there = A_ROWS % A_BN == 0 || i + r < A_ROWS;
        rax_copy_4(log_sum + r, is_there ? lse + (i + r) * (rax_i64)A_LSE_ROW : lse, is_there);
        rax_copy_4(log_sum + A_BN + r, is_there ? delta + i + r : delta, is_there);
    }
}

/* Rows of the tiles are keys, columns are queries. */
RAX_DEVICE void rax_attention_keys(const rax_element *q, const rax_element *k, const rax_element *v, const rax_element *dout, const float *lse, const float *delta, rax_grad *dk,
                                   rax_grad *dv, rax_dropout drop, int tile, unsigned char *memory)
{
    rax_element *K = (rax_element *)memory, *V = K + A_BM * A_LD, *stages = V + A_BM * A_LD, *all = stages + 2 * A_STAGES * A_BN * A_LD, *P = all + (threadIdx.x >> 5) * 16 * A_LP;
    float *numbers = (float *)(A_MMA ? all : all + A_BM * A_LP);
    const int lane = threadIdx.x & 31, warp = rax_warp_index(), g = lane >> 2, t = lane & 3, first = tile * A_BM, key = first + A_WM * warp + g;
    const int begin = A_CAUSAL && first - (A_KEYS - A_ROWS) > 0 ? (first - (A_KEYS - A_ROWS)) / A_BN * A_BN : 0;
    float DK[A_MT * A_DT][4], DV[A_MT * A_DT][4], S[A_MT * A_NT][4], W[A_MT * A_NT][4];
    rax_u32 held_k[A_HOLDS][4], held_v[A_HOLDS][4];
    int stage = 0;
    rax_clear(DK, A_MT * A_DT);
    rax_clear(DV, A_MT * A_DT);
    A_LOAD(K, k, K, first, A_KEYS, A_BM);
    A_LOAD(V, v, V, first, A_KEYS, A_BM);
    if (A_STAGES == 2)
        rax_load_queries(stages, numbers, q, dout, lse, delta, begin);
    rax_copies_wait();
    rax_block_wait();
    rax_hold(held_k, K + A_WM * warp * A_LD);
    rax_hold(held_v, V + A_WM * warp * A_LD);
    for (int i = begin; i < A_ROWS; i += A_BN) {
        const rax_element *Q = stages + 2 * stage * A_BN * A_LD, *G = Q + A_BN * A_LD;
        const float *numbers_of = numbers + 2 * stage * A_BN;
        if (A_STAGES == 1) {
            rax_block_wait();
            rax_load_queries(stages, numbers, q, dout, lse, delta, i);
        }
        rax_copies_wait();
        rax_block_wait();
        stage ^= A_STAGES - 1;
        if (A_STAGES == 2 && i + A_BN < A_ROWS)
            rax_load_queries(stages + 2 * stage * A_BN * A_LD, numbers + 2 * stage * A_BN, q, dout, lse, delta, i + A_BN);
        if (rax_sees_nothing(i + A_BN - 1, first + A_WM * warp))
            continue;
        const int ahead = i + 2 * t + A_KEYS - A_ROWS - key;
        rax_clear(S, A_MT * A_NT);
        rax_product_nt(S, A_NT, K + A_WM * warp * A_LD, held_k, Q);
        RAX_UNROLL
        for (int c = 0; c < 2 * A_NT; c++) {             /* compared one by one: kept apart as above this needs more registers than there are */
            const float log_sum = numbers_of[8 * (c >> 1) + 2 * t + (c & 1)] * A_LOG2E;
            RAX_UNROLL
            for (int half = 0; half < 2 * A_MT; half++) {
                float *const s = &S[(half >> 1) * A_NT + (c >> 1)][2 * (half & 1) + (c & 1)];
                *s = A_CAUSAL && 8 * half - 8 * (c >> 1) - (c & 1) > ahead ? 0 : rax_exp2(*s * A_SCALE_LOG2 - log_sum);
            }
        }
        rax_clear(W, A_MT * A_NT);
        rax_product_nt(W, A_NT, V + A_WM * warp * A_LD, held_v, G);
        const rax_u32 kept = rax_kept_in_columns(&drop, i + 2 * t, key);
        RAX_UNROLL
        for (int c = 0; c < 2 * A_NT; c++) {
            const float dot = numbers_of[A_BN + 8 * (c >> 1) + 2 * t + (c & 1)];
            RAX_UNROLL
            for (int half = 0; half < 2 * A_MT; half++) {
                float *const s = &S[(half >> 1) * A_NT + (c >> 1)][2 * (half & 1) + (c & 1)], *const w = &W[(half >> 1) * A_NT + (c >> 1)][2 * (half & 1) + (c & 1)];
                const int is_kept = kept >> (2 * A_NT * half + c) & 1;
                *w = *s * ((is_kept ? *w : 0) - dot);
                *s = is_kept ? *s : 0;
            }
        }
        rax_product_values(DV, A_DT, S, G, P);
        rax_product_values(DK, A_DT, W, Q, P);
    }
    const float scale[2] = { A_SCALE * A_KEEP, A_SCALE * A_KEEP }, one[2] = { A_KEEP, A_KEEP };
    RAX_UNROLL
    for (int m = 0; m < A_MT; m++) {
        rax_store_grad(dk, DK + m * A_DT, scale, key + 16 * m, A_KEYS, A_DK_ROW, A_DK_COLUMN, A_DK_WIDE);
        rax_store_grad(dv, DV + m * A_DT, one, key + 16 * m, A_KEYS, A_DV_ROW, A_DV_COLUMN, A_DV_WIDE);
    }
}
