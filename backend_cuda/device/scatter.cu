/* Adds updates to rows of a target by index, each row's updates in the order of their positions, without atomics.
 *
 * The first launch sorts the positions by their index, equal ones as they stand: where[i] is the i-th position then, row[i] its index. A position's place is the number
 * of those that come before it, which is counted: RAX_SORTED positions a block, each by RAX_SORT_PARTS threads that share the others out, by tiles in shared memory. The
 * second launch has the threads of a block beside each other along a row; each goes along all positions of that row, of which up to RAX_WALK are read at once, and added
 * one by one. */

enum { RAX_SORT_THREADS = 256, RAX_SORT_PARTS = 8, RAX_SORTED = RAX_SORT_THREADS / RAX_SORT_PARTS, RAX_SORT_TILE = 4 * RAX_SORT_THREADS, RAX_WALK = 16, RAX_LAST = 4 };

RAX_DEVICE int rax_row(const int *indices, rax_i64 stride, int p, rax_i64 rows) { return (int)rax_clamp(indices[p * stride], rows - 1); }

/* shared: RAX_SORT_TILE of them. A warp's threads read one place of the tile, in fours. */
RAX_DEVICE void rax_scatter_sort(const int *indices, rax_i64 stride, rax_i64 rows, int positions, int *where, int *row, rax_i32x4 *shared)
{
    enum { FOURS = RAX_SORT_TILE / 4, MINE = FOURS / RAX_SORT_PARTS };
    const int thread = threadIdx.x, p = blockIdx.x * RAX_SORTED + thread % RAX_SORTED, part = thread / RAX_SORTED;
    const int mine = p < positions ? rax_row(indices, stride, p, rows) : 0;
    int before = 0;
    for (int tile = 0; tile < positions; tile += RAX_SORT_TILE) {
        rax_i32x4 four;
        for (int j = 0; j < 4; j++)
            four.v[j] = tile + 4 * thread + j < positions ? rax_row(indices, stride, tile + 4 * thread + j, rows) : 2147483647;
        rax_block_wait();
        shared[thread] = four;
        rax_block_wait();
        if (tile / RAX_SORT_TILE != p / RAX_SORT_TILE) {
            const int limit = mine + (tile < p);              /* of equal ones those before p count */
            RAX_UNROLL_4
            for (int i = part * MINE; i < (part + 1) * MINE; i++) {
                const rax_i32x4 other = shared[i];
                for (int j = 0; j < 4; j++)
                    before += (int)((rax_u32)(other.v[j] - limit) >> 31);      /* other < limit: neither is negative */
            }
        } else {
            for (int i = part * MINE; i < (part + 1) * MINE; i++) {
                const rax_i32x4 other = shared[i];
                for (int j = 0; j < 4; j++)
                    before += other.v[j] < mine + (tile + 4 * i + j < p);
            }
        }
    }
    rax_block_wait();
    ((int *)shared)[thread] = before;
    rax_block_wait();
    if (part == 0 && p < positions) {
        for (int i = 1; i < RAX_SORT_PARTS; i++)
            before += ((int *)shared)[i * RAX_SORTED + thread];
        where[before] = p;
        row[before] = mine;
    }
}
