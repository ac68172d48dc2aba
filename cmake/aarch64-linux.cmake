# For 64-bit Arm, built on another machine: -Ccmake.define.CMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux.cmake, with
# _PYTHON_HOST_PLATFORM=linux-aarch64 for the wheel's name (docs/wheels.md). Debian's and Ubuntu's cross compilers, by default;
# CC and CXX name others.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
foreach(compiler IN ITEMS "C gcc CC" "CXX g++ CXX")
  string(REPLACE " " ";" compiler "${compiler}")
  list(GET compiler 0 language)
  list(GET compiler 1 name)
  list(GET compiler 2 variable)
  if(DEFINED ENV{${variable}})
    set(CMAKE_${language}_COMPILER "$ENV{${variable}}")
  else()
    set(CMAKE_${language}_COMPILER "aarch64-linux-gnu-${name}")
  endif()
endforeach()
# Programs are this machine's; headers and libraries are not. Python's headers are the same for all that have pointers of this
# size, and nothing links its library.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
