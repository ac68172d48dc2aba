# vendor/llama.cpp: the tree that vendor/llama.cpp.lock pins, brought by vendor/fetch.py when it is
# missing or of another pin (see there). Sets MOEBIND_LLAMA_COMMIT and MOEBIND_LLAMA_VERSION.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp.lock" "${CMAKE_CURRENT_SOURCE_DIR}/vendor/fetch.py")
file(GLOB patches "${CMAKE_CURRENT_SOURCE_DIR}/vendor/patches/*.patch")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${patches})

execute_process(COMMAND ${Python_EXECUTABLE} "${CMAKE_CURRENT_SOURCE_DIR}/vendor/fetch.py" --without ${MOEBIND_WITHOUT}
  RESULT_VARIABLE failed ERROR_VARIABLE said)
if(failed)
  string(STRIP "${said}" said)
  message(FATAL_ERROR "${said}")
endif()

foreach(field IN ITEMS commit version)
  string(TOUPPER "MOEBIND_LLAMA_${field}" variable)
  execute_process(COMMAND ${Python_EXECUTABLE} "${CMAKE_CURRENT_SOURCE_DIR}/vendor/fetch.py" --print ${field}
    OUTPUT_VARIABLE ${variable} OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endforeach()
