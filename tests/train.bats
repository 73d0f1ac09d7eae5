# rax train from outside: what it prints and writes, one compilation, signals, and one line for each mistake.
bats_require_minimum_version 1.5.0

FIXTURES="$BATS_TEST_DIRNAME/fixtures/golden"

setup() {
    cd "$BATS_TEST_TMPDIR"
    export RAX_CACHE_DIR="$PWD/cache"
    unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA
    CONFIG="$FIXTURES/odd-widths/config.json"
}

# A run of the fixture's model, of 12 iterations, into out/.
train() { "$RAX_BIN" train "$CONFIG" --out_dir=out "$@" >stdout 2>stderr; }

# fails STATUS TEXT ARGUMENT...: the exit status, one line on standard error that has the text, no iteration on standard output.
fails() {
    local wanted=$1 text=$2 status=0
    shift 2
    "$RAX_BIN" "$@" >stdout 2>stderr || status=$?
    grep -v '^\[RAX\]' stderr >lines || true
    echo "rax $*: status $status"; cat lines
    [ "$status" -eq "$wanted" ] && [ "$(wc -l <lines)" -eq 1 ] && grep -qF -- "$text" lines
}

# Waits for a line in a file.
await() { for _ in $(seq 600); do grep -q "$1" "$2" 2>/dev/null && return; sleep 0.05; done; false; }

# ids N...: those tokens on standard output, as uint16.
ids() { for id in "$@"; do printf "\\x$(printf %02x $((id & 255)))\\x$(printf %02x $((id >> 8)))"; done; }

@test "an iteration is a line, and a row of metrics" {
    train
    cat stdout
    [ "$(wc -l <stdout)" -eq 12 ]
    [ "$(grep -cE '^iter [0-9]+: loss [0-9]+\.[0-9]{4}, grad_norm [0-9]+\.[0-9]{4}, lr [0-9]\.[0-9]{2}e[+-][0-9]{2}, time [0-9]+\.[0-9]ms$' stdout)" -eq 12 ]
    grep -q '^iter 0: loss 3.8742, grad_norm 2.8081, lr 0.00e+00, time ' stdout
    [ "$(wc -l <out/metrics.jsonl)" -eq 12 ]
    for key in iter loss grad_norm lr time_ms tokens_per_s; do [ "$(grep -c "\"$key\": " out/metrics.jsonl)" -eq 12 ]; done
    grep -qE '"iter": 3, "loss": [0-9]\.[0-9]{8,}' out/metrics.jsonl
}

@test "log_interval leaves out lines, not rows" {
    train --log_interval=5
    [ "$(grep -o '^iter [0-9]*' stdout | tr '\n' ' ')" = "iter 0 iter 5 iter 10 " ]
    [ "$(wc -l <out/metrics.jsonl)" -eq 12 ]
    train --log_interval=0
    [ ! -s stdout ]
}

@test "train_step and eval_step compile once each" {
    train --eval_interval=4 --eval_iters=3 --checkpoint_interval=5
    cat stdout stderr
    [ "$(grep -c "JIT-compiling" stderr)" -eq 2 ]
    grep -qxF "[RAX] JIT-compiling 'train_step' with static_argnums=[5, 6]" stderr
    grep -q "JIT-compiling 'eval_step'" stderr
    [ "$(grep -oE '^(iter|eval) [0-9]+' stdout | tr '\n' ' ')" = \
      "eval 0 iter 0 iter 1 iter 2 iter 3 eval 4 iter 4 iter 5 iter 6 iter 7 eval 8 iter 8 iter 9 iter 10 iter 11 eval 12 " ]
    [ "$(grep -c val_loss out/metrics.jsonl)" -eq 4 ]
    [ "$(ls -d out/ckpt-* | tr '\n' ' ')" = "out/ckpt-000010 out/ckpt-000012 " ]
}

@test "an evaluation of the whole split is what rax eval finds" {
    train --eval_interval=12 --eval_iters=0
    cat stdout
    loss=$(sed -n 's/^eval 12: val_loss \([0-9.]*\), .*/\1/p' stdout)
    [ -n "$loss" ]
    "$RAX_BIN" eval out >stdout
    cat stdout
    grep -q "val_loss $loss over " stdout
    "$RAX_BIN" eval out/ckpt-000012 --split=train | grep -q "train_loss $loss over "        # the fixture's splits are one file
    fails 2 "--split: expected train or val" eval out --split=test
}

@test "a run begins in the folder of another, and replaces its metrics" {
    train --max_iters=3
    train --max_iters=2
    [ "$(wc -l <out/metrics.jsonl)" -eq 2 ]
    [ "$(readlink out/latest)" = ckpt-000002 ]
}

@test "a run begins from weights of another run" {
    train --max_iters=3
    "$RAX_BIN" train "$CONFIG" --out_dir=other --max_iters=1 --init_from=out >stdout
    "$RAX_BIN" train "$CONFIG" --out_dir=third --max_iters=1 --init_from=out/ckpt-000003 >stdout2
    [ "$(cut -d, -f1-3 stdout)" = "$(cut -d, -f1-3 stdout2)" ]
    [ "$(cut -d, -f1 stdout)" != "iter 0: loss 3.8742" ]
    fails 2 "n_head" train "$CONFIG" --out_dir=fourth --init_from=out --n_head=7
}

@test "--profile tells where the time went, in rows that add up" {
    train --profile --eval_interval=4 --eval_iters=3
    cat stdout
    [ "$(grep -cE '^(train|eval)_step: [0-9]+ runs, [0-9.]+ ms each on [0-9]+ threads?: [0-9.]+% computing, ' stdout)" -eq 2 ]
    grep -qE '^peak on [0-9]+ threads?: f32 [0-9]+ GFLOP/s, bf16 [0-9]+ GFLOP/s, memory [0-9.]+ GB/s read, ' stdout
    grep -q '^train_step: 11 runs, ' stdout
    grep -q '^eval_step: 11 runs, ' stdout
    grep -qE '^ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9.]+[am]  model.c:[0-9]+ +matmul.* [0-9]+x[0-9]+x[0-9]+, ' stdout
    # shares of both programs together, with what starting takes
    awk '/^(train|eval)_step/ { split($0, part, ", "); rest += part[length(part)] } $2 ~ /^[0-9.]+$/ && NF > 6 { sum += $1 }
         END { print sum, rest; exit !(sum + rest > 198 && sum + rest < 202) }' stdout
}

@test "--profile of the interpreter says that there is none" {
    train --profile --no-jit --max_iters=1
    grep -q '^no profile: ' stdout
}

@test "--trace writes an array of complete events" {
    command -v python3 >/dev/null || skip "there is no python3"
    train --trace=trace.json --threads=2
    [ "$(wc -l <stdout)" -eq 12 ]
    python3 - <<'END'
import json
events = json.load(open("trace.json"))
tracks = {e["tid"] for e in events if e["ph"] == "M"}
spans = [e for e in events if e["ph"] == "X"]
assert len(tracks) + len(spans) == len(events) and spans
assert all(e["dur"] >= 0 and e["tid"] in tracks and e["pid"] == 1 for e in spans)
assert any(e["name"].startswith("matmul") and e["args"]["file"].endswith("model.c") and e["args"]["line"] > 0 for e in spans)
END
    fails 1 "no/trace.json: cannot be written: No such file" train "$CONFIG" --out_dir=out --trace=no/trace.json
    cp trace.json before
    fails 2 "absent.bin" train "$CONFIG" --out_dir=out --trace=trace.json --train_data=absent.bin
    cmp trace.json before
    fails 2 "absent.bin" train "$CONFIG" --out_dir=out --trace=other.json --train_data=absent.bin
    [ ! -e other.json ]
}

@test "--trace into a pipe" {
    mkfifo pipe
    fails 1 "pipe: cannot be written: nobody reads from it" train "$CONFIG" --out_dir=out --trace=pipe
    train --max_iters=2 --trace=>(cat >read)
    wait $!
    tail -n 1 read | grep -q '^]$'
}

@test "--dump_ir writes graphs after each pass, kernels, LLVM IR and assembly" {
    RAX_CACHE_DIR=$PWD/fresh train --max_iters=1 --dump-ir=some/where
    for part in trace cse; do ls some/where/train_step-1/*-$part.rax; done
    [ -s some/where/train_step-1/train_step.kernels ]
    ls some/where/train_step-1/*.ll some/where/train_step-1/*.s >files
    # what a pass leaves is a graph that parses
    "$RAX_BIN" compile some/where/train_step-1/00-trace.rax >stdout
    grep -q '^; -- kernels' stdout
    "$RAX_BIN" compile some/where/train_step-1/00-trace.rax --dump-ir=again >by_itself
    cmp stdout by_itself
    diff -r some/where/train_step-1 again/train_step-1            # names, lines and all
    : >file
    train --max_iters=1 --dump_ir=file/where
    grep -q '^\[RAX\] warning: file/where/train_step-1: Not a directory; nothing is written there$' stderr
}

@test "no progress line in a pipe; one on a terminal" {
    train
    ! grep -q $'\r' stdout
    command -v script >/dev/null || skip "there is no script(1)"
    script -qec "$RAX_BIN train $CONFIG --out_dir=out" /dev/null </dev/null >typescript
    grep -q 'tokens/s' typescript
    grep -qE '[0-9]+/12 .* [0-9]+:[0-9]{2}:[0-9]{2} left  loss [0-9.]+' typescript
}

@test "SIGINT and SIGTERM end with a checkpoint" {
    for signal in INT:130 TERM:143; do
        rm -rf out
        # a background job of a shell that is not interactive ignores SIGINT; env gives it back
        env --default-signal=INT "$RAX_BIN" train "$CONFIG" --out_dir=out --max_iters=100000000 --log_interval=0 >stdout 2>stderr &
        pid=$!
        await '"iter": 5' out/metrics.jsonl
        kill -s "${signal%:*}" $pid
        status=0
        wait $pid || status=$?
        [ $status -eq "${signal#*:}" ]
        [ "$(grep -v '^\[RAX\]' stderr)" = "rax: stopped by a signal: out has a checkpoint, and --init_from=resume goes on from it" ]
        # the rows are those of the updates in the checkpoint
        [ "$(readlink out/latest)" = "$(printf ckpt-%06d "$(wc -l <out/metrics.jsonl)")" ]
    done
}

@test "a run that diverges ends in one line and keeps the last checkpoint" {
    train --max_iters=2
    fails 1 "the run has diverged" train "$CONFIG" --out_dir=out --init_from=resume --max_iters=100 --warmup_iters=0 --learning_rate=1e38 --min_lr=1e38
    [ "$(ls -d out/ckpt-* | tr '\n' ' ')" = "out/ckpt-000002 " ]
    grep -q '"loss": null\|"grad_norm": null' out/metrics.jsonl
}

@test "configurations that cannot be" {
    fails 2 "command line: n_head: 4 heads do not divide n_embd, a width of 21 ($CONFIG)" train "$CONFIG" --out_dir=out --n_head=4
    fails 2 "$CONFIG: n_head: 3 heads do not divide n_embd, a width of 22 (command line)" train "$CONFIG" --out_dir=out --n_embd=22
    fails 2 "the nearest is" train "$CONFIG" --out_dir=out --n_heads=3
    fails 2 "learning_rate: expected" train "$CONFIG" --out_dir=out --learning_rate=fast
    fails 2 "none.json" train none.json
    sed '/val_data/d; s/"train_data": "/&'"${FIXTURES//\//\\/}"'\/odd-widths\//; s/"init"/"scratch"/' "$CONFIG" >noval.json
    fails 2 "eval_interval: there is no validation data" train noval.json --out_dir=out --eval_interval=2
    [ ! -e out ]
}

@test "token files that cannot be" {
    ids 1 2 3 36 5 6 7 8 9 10 11 12 13 >short.bin
    fails 2 "short.bin" train "$CONFIG" --out_dir=out --train_data=short.bin
    { ids 36 37; cat "$FIXTURES/odd-widths/tokens.bin"; } >beyond.bin
    fails 2 "37" train "$CONFIG" --out_dir=out --train_data=beyond.bin
    head -c 101 "$FIXTURES/odd-widths/tokens.bin" >torn.bin
    fails 2 "torn.bin" train "$CONFIG" --out_dir=out --train_data=torn.bin
    fails 2 "absent.bin" train "$CONFIG" --out_dir=out --train_data=absent.bin
    [ ! -e out/metrics.jsonl ]
}

@test "a token file that is cut short while it is read" {
    cp "$FIXTURES/odd-widths/tokens.bin" cut.bin
    "$RAX_BIN" train "$CONFIG" --out_dir=out --train_data=cut.bin --max_iters=1000000 --checkpoint_interval=2 >stdout 2>stderr &
    await '^iter 4' stdout
    : >cut.bin
    status=0
    wait $! || status=$?
    grep -v '^\[RAX\]' stderr >lines
    cat lines
    [ "$status" -eq 1 ] && [ "$(wc -l <lines)" -eq 1 ] && grep -q 'was cut short' lines
    "$RAX_BIN" train "$CONFIG" --out_dir=out --init_from=resume --max_iters=5
}

@test "weight files that cannot be" {
    mkdir weights
    fails 2 "weights/model.safetensors" train "$CONFIG" --out_dir=out --init_from=weights
    head -c 5000 "$FIXTURES/odd-widths/init/model.safetensors" >weights/model.safetensors
    fails 2 "weights/model.safetensors" train "$CONFIG" --out_dir=out --init_from=weights
    cp "$FIXTURES/one-token/init/model.safetensors" weights/
    fails 2 "transformer.wte.weight: expected shape [37,21], got [17,12]" train "$CONFIG" --out_dir=out --init_from=weights
    fails 2 "out: " train "$CONFIG" --out_dir=out --init_from=resume
    [ ! -e out/metrics.jsonl ]
}

@test "an out_dir that cannot be written" {
    echo text >file
    fails 1 "file" train "$CONFIG" --out_dir=file/out
    fails 1 "file" train "$CONFIG" --out_dir=file
}

@test "an out_dir, a file and a cache without permission" {
    [ "$(id -u)" -ne 0 ] || setpriv --bounding-set=-dac_override true 2>/dev/null || skip "root, and no setpriv"
    local rax=$RAX_BIN
    train --max_iters=2
    cp -r out before
    printf '#!/bin/sh\nexec setpriv --bounding-set=-dac_override,-dac_read_search "%s" "$@"\n' "$rax" >rax
    [ "$(id -u)" -eq 0 ] || printf '#!/bin/sh\nexec "%s" "$@"\n' "$rax" >rax
    chmod +x rax
    RAX_BIN=./rax
    chmod 555 out
    fails 1 "out: out_dir cannot be written to: Permission denied" train "$CONFIG" --out_dir=out
    fails 1 "out/new: cannot make the folder: Permission denied" train "$CONFIG" --out_dir=out/new
    chmod 755 out
    diff -r out before
    cp "$FIXTURES/odd-widths/tokens.bin" secret.bin
    chmod 000 secret.bin
    fails 2 "secret.bin: cannot be opened: Permission denied" train "$CONFIG" --out_dir=other --train_data=secret.bin
    mkdir -m 555 locked
    ./rax train "$CONFIG" --out_dir=other --cache-dir=locked/cache >stdout 2>stderr        # nothing is kept, and it trains
    [ "$(wc -l <stdout)" -eq 12 ]
}

# A limit on the size of a file stands for a disk that is full.
full_disk() { ulimit -f "$1"; }

@test "when nobody reads its output any more a run ends with a checkpoint" {
    run bash -c '"$RAX_BIN" train "$0" --out_dir=out --max_iters=100000000 2>stderr | head -n 3 >stdout; exit ${PIPESTATUS[0]}' "$CONFIG"
    [ "$status" -eq 141 ] && [ "$(wc -l <stdout)" -eq 3 ]
    "$RAX_BIN" train "$CONFIG" --out_dir=out --init_from=resume --max_iters=1 >stdout 2>stderr
}

@test "two runs in one folder: the second is refused before it writes" {
    "$RAX_BIN" train "$CONFIG" --out_dir=out --max_iters=100000000 --log_interval=0 >first 2>&1 &
    await '"iter": 2' out/metrics.jsonl
    fails 2 "out: out_dir: another run is writing there" train "$CONFIG" --out_dir=out --max_iters=1
    kill -9 $!
    wait $! || true
    [ "$(wc -l <out/metrics.jsonl)" -gt 2 ]
    train --max_iters=1
}

@test "a full disk: a checkpoint is whole or absent" {
    train --max_iters=3
    cp -r out before
    (full_disk 8; fails 1 "model.safetensors: cannot be written: File too large" train "$CONFIG" --out_dir=out --max_iters=6 --init_from=resume)
    diff -r out/ckpt-000003 before/ckpt-000003
    [ "$(readlink out/latest)" = ckpt-000003 ] && [ -z "$(find out -name '.*')" ]
    train --max_iters=6 --init_from=resume
    "$RAX_BIN" train "$CONFIG" --out_dir=whole --max_iters=6 >stdout 2>stderr
    cmp out/ckpt-000006/model.safetensors whole/ckpt-000006/model.safetensors
}

@test "a full disk: metrics end in a whole row" {
    train --max_iters=3
    (full_disk 4; fails 1 "out/metrics.jsonl: cannot be written: File too large" train "$CONFIG" --out_dir=out --max_iters=200 --log_interval=0)
    [ "$(tail -c 1 out/metrics.jsonl)" = "" ] && [ "$(wc -c <out/metrics.jsonl)" -gt 3900 ]
    [ "$(grep -c '^{"iter": .*}$' out/metrics.jsonl)" -eq "$(wc -l <out/metrics.jsonl)" ]
    [ "$(readlink out/latest)" = ckpt-000003 ]
}

@test "a full disk: standard output" {
    [ -e /dev/full ] || skip "no /dev/full"
    run -1 bash -c '"$RAX_BIN" train "$0" --out_dir=out --max_iters=2 2>stderr >/dev/full' "$CONFIG"
    grep -q '^rax: standard output: cannot be written' stderr
}

@test "a full disk: code that cannot be kept runs all the same" {
    train --max_iters=3
    "$RAX_BIN" eval out >expected 2>/dev/null
    (full_disk 1; "$RAX_BIN" eval out --cache-dir=fresh >got 2>stderr)
    cat stderr
    cmp got expected
    [ -z "$(find fresh -type f -name '*tmp*')" ]
}

@test "a model too large for memory" {
    ulimit -v 16000000          # so that nothing of this size is tried on any machine
    "$RAX_BIN" --version >/dev/null || skip "a sanitizer takes more address space than the limit"
    fails 1 "memory" train "$CONFIG" --out_dir=out --init_from=scratch --n_embd=49152 --n_layer=64 --n_head=1
    [ ! -e out/metrics.jsonl ]
}

# The kernel promises more than there is, and kills who writes to it. 805 MB a layer for weights, twice that for moments.
@test "a model that the machine has no memory for is refused, in whole" {
    case $RAX_BIN in *-asan/*|*-tsan/*) skip "sanitizers touch memory when it is handed out" ;; esac
    cp -r "$FIXTURES/odd-widths/." .
    local layers=$(($(awk '/^MemTotal/ { print $2 }' /proc/meminfo) * 1024 / 805000000 + 1))
    for n in "$layers" $((layers / 2)); do
        fails 1 "MB are available" train config.json --out_dir=none --n_embd=4096 --n_head=8 --n_layer="$n"
        grep -qE '^rax: out of memory: f32\[[0-9,]+\] needs [0-9.]+ MB; [0-9.]+ MB of [0-9.]+ MB are available(; the largest tensors are .*)?$' stderr
        [ ! -e none ]
    done
}
