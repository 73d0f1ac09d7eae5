# A run that is stopped and resumed computes the bits of one that never stopped: weights, moments, metrics.
bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR"
    export RAX_CACHE_DIR="$PWD/cache"
    unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA
    CONFIG="$BATS_TEST_DIRNAME/fixtures/golden/odd-widths/config.json"
    # what the fixture has not: dropout, random batches, accumulation, evaluations on the way
    KEYS=(--dropout=0.2 --sampling=random --gradient_accumulation_steps=2 --init_from=scratch --seed=5 --eval_interval=3 --eval_iters=2 --lr_decay_iters=20)
}

train() { "$RAX_BIN" train "$CONFIG" "${KEYS[@]}" "$@" >>stdout 2>>stderr; }

# Metrics without what the clock says.
metrics() { sed -E 's/, "(time_ms|tokens_per_s)": [^,}]*//g' "$1/metrics.jsonl"; }

same_run() {
    cmp "$1/latest/model.safetensors" "$2/latest/model.safetensors"
    cmp "$1/latest/optimizer.safetensors" "$2/latest/optimizer.safetensors"
    diff <(metrics "$1") <(metrics "$2")
}

@test "2N iterations, and N twice" {
    train --out_dir=whole --max_iters=10
    train --out_dir=halves --max_iters=5
    ! cmp -s whole/latest/model.safetensors halves/latest/model.safetensors
    train --out_dir=halves --max_iters=10 --init_from=resume
    same_run whole halves
    grep -q '"iter": 4, "loss"' halves/metrics.jsonl
    [ "$(grep -c '"loss"' halves/metrics.jsonl)" -eq 10 ]
}

@test "the same by the interpreter" {
    train --no-jit --out_dir=whole --max_iters=6
    train --no-jit --out_dir=halves --max_iters=3
    train --no-jit --out_dir=halves --max_iters=6 --init_from=resume
    same_run whole halves
}

@test "any number of threads" {
    train --out_dir=one --max_iters=6 --threads=1
    train --out_dir=two --max_iters=6 --threads=2
    train --out_dir=seven --max_iters=6 --threads=7
    same_run one two
    same_run one seven
}

@test "with one head, without bias, in bf16" {
    KEYS+=(--n_head=1 --bias=false --dtype=bf16 --grad_clip=0)
    train --out_dir=whole --max_iters=6
    train --out_dir=halves --max_iters=3
    train --out_dir=halves --max_iters=6 --init_from=resume
    same_run whole halves
}

@test "killed again and again" {
    KEYS+=(--checkpoint_interval=7 --log_interval=0)
    train --out_dir=whole --max_iters=400
    mkdir killed
    init=scratch
    for delay in 0.3 0.5 0.2 0.7 0.4; do
        "$RAX_BIN" train "$CONFIG" "${KEYS[@]}" --out_dir=killed --max_iters=400 --init_from=$init >>stdout 2>>stderr &
        pid=$!
        sleep $delay
        kill -9 $pid 2>/dev/null || true
        wait $pid 2>/dev/null || true
        [ -e killed/latest ] && init=resume
    done
    train --out_dir=killed --max_iters=400 --init_from=$init
    same_run whole killed
    [ -z "$(find killed -name '*.tmp')" ]
}

@test "a signal, then resumed" {
    train --out_dir=whole --max_iters=60 --log_interval=0
    env --default-signal=INT "$RAX_BIN" train "$CONFIG" "${KEYS[@]}" --out_dir=ended --max_iters=60 --log_interval=0 >>stdout 2>>stderr &
    pid=$!
    for _ in $(seq 600); do [ -s ended/metrics.jsonl ] && break; sleep 0.02; done
    kill -INT $pid 2>/dev/null || true
    wait $pid || true
    train --out_dir=ended --max_iters=60 --log_interval=0 --init_from=resume
    same_run whole ended
}

# refused TEXT ARGUMENT...: exit status 2, one line
refused() {
    local text=$1 status=0
    shift
    "$RAX_BIN" train "$CONFIG" "${KEYS[@]}" --init_from=resume "$@" >stdout 2>stderr || status=$?
    cat stderr
    [ $status -eq 2 ] && [ "$(wc -l <stderr)" -eq 1 ] && grep -qF -- "$text" stderr
}

@test "what does not go on is refused, and left as it was" {
    train --out_dir=run --max_iters=3
    cp -r run copy
    refused "seed: the run was begun with 5, the configuration says 6" --out_dir=run --seed=6
    refused "n_layer" --out_dir=run --n_layer=1
    refused "none: there is no such folder" --out_dir=none
    diff -r run copy
    printf x | dd of=run/latest/optimizer.safetensors bs=1 seek=9000 conv=notrunc 2>/dev/null
    refused "optimizer.safetensors: is damaged" --out_dir=run
}

@test "a run that is over ends at once" {
    train --out_dir=run --max_iters=3
    cp run/metrics.jsonl before
    train --out_dir=run --max_iters=3 --init_from=resume
    diff <(metrics run) <(sed -E 's/, "(time_ms|tokens_per_s)": [^,}]*//g' before)
}
