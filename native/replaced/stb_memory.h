// Included before libmtmd's mtmd-helper.cpp: stb_image decodes what it can of a damaged picture, and leaves the rest of the
// pixels as it got them. So it gets zeros, and not what the process had there before.
#pragma once
#include <stdlib.h>

#define STBI_MALLOC(size)           calloc(1, size)
#define STBI_REALLOC(pointer, size) realloc(pointer, size)
#define STBI_FREE(pointer)          free(pointer)
