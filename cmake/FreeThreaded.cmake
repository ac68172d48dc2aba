# Free-threaded Python has no limited API, in which the extension is compiled (cffi's, too, needs another one there), and
# nobody has looked at what moebind's locks would have to do without the interpreter's: refused, rather than found missing.
execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
  OUTPUT_VARIABLE free_threaded OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT free_threaded STREQUAL "0")
  message(FATAL_ERROR "${Python_EXECUTABLE} is a free-threaded Python ${Python_VERSION}, for which moebind cannot be built: "
    "its extension uses Python's limited API, which is not there. Use the Python of the same version with the interpreter's lock.")
endif()
