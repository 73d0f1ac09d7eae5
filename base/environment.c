/* What a variable of the environment says. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

bool base_is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value && strcmp(value, "0") != 0;
}
