# The compiled extension; native/cdef.py writes it from llama.cpp's headers. `lib` has no static types: it is the C API.
from typing import Any

ffi: Any
lib: Any
