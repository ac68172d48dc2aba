# The compiled extension, written by native/bind/cdef.py from llama.cpp's headers.
# `lib` has no static types: it is the C API.
from typing import Any

ffi: Any
lib: Any
