/* Adds updates to rows of a target by index, each row's updates in the order of their positions, without atomics.
 *
 * The first launch chains the positions of each row: next[p] is the next position with p's index, and first[p] tells whether none comes before
 * it. Positions are compared by tiles of 256 that a block has in shared memory; a position whose next and previous are found looks no further. The
 * second has a thread for each chain and column, which walks the chain.  */

RAX_DEVICE int rax_row(const int *indices, rax_i64 stride, int p, rax_i64 rows) { return (int)rax_clamp(indices[p * stride], rows - 1); }

RAX_DEVICE void rax_scatter_chain(const int *indices, rax_i64 stride, rax_i64 rows, int positions, int *next, int *shared)
{
    const int p = blockIdx.x * blockDim.x + threadIdx.x, mine = p < positions ? rax_row(indices, stride, p, rows) : -1;
    int following = -1, is_first = 1;
    for (int tile = 0; tile < positions; tile += blockDim.x) {
        rax_block_wait();
        shared[threadIdx.x] = tile + (int)threadIdx.x < positions ? rax_row(indices, stride, tile + threadIdx.x, rows) : -2;
        rax_block_wait();
        if (tile + (int)blockDim.x <= p) {
            for (int i = 0; is_first && i < (int)blockDim.x; i++)
                is_first = shared[i] != mine;
        } else {
            for (int i = 0; following < 0 && i < (int)blockDim.x; i++) {
                if (shared[i] != mine)
                    continue;
                if (tile + i < p)
                    is_first = 0;
                else if (tile + i > p)
                    following = tile + i;
            }
        }
    }
    if (p < positions) {
        next[p] = following;
        next[positions + p] = is_first;
    }
}
