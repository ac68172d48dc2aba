// Included before llama-common's json-schema-to-grammar.cpp: what it prints to standard error goes to its log instead.
#pragma once
#include "log.h"

#include <cstdio>

#define fprintf(stream, ...) LOG_WRN(__VA_ARGS__)
