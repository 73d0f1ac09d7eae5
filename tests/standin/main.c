/* The program rax on a machine whose GPU is the stand-in: what tests/cuda.bats runs. cli/main.c is compiled with another name for its main. */
#include "tests/cuda_standin.h"

int rax_main(int argc, char **argv);

int main(int argc, char **argv)
{
    cuda_library_use(&standin_library);
    return rax_main(argc, argv);
}
