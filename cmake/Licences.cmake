# In the wheel's metadata: the licences of everything that it bundles, and a list of it (an SBOM, CycloneDX).
# cmake/bundled.py has the table. The licences themselves are files of the project, licences/, which pip looks for before
# llama.cpp is there; here they are compared with those of the llama.cpp that is built.
set(listed "${CMAKE_CURRENT_BINARY_DIR}/moebind.cdx.json")
set(version "${PROJECT_VERSION}")
if(SKBUILD_PROJECT_VERSION_FULL) # with what CMake takes for no version, such as rc1
  set(version "${SKBUILD_PROJECT_VERSION_FULL}")
endif()
set(with_page "")
if(page_folder) # Page.cmake
  set(with_page --page)
endif()
execute_process(
  COMMAND ${Python_EXECUTABLE} "${CMAKE_CURRENT_LIST_DIR}/bundled.py" --check --sbom "${listed}"
    --version "${version}" --without ${MOEBIND_WITHOUT} ${with_page} --built ${MOEBIND_LIBRARIES} ${MOEBIND_PROGRAMS}
  RESULT_VARIABLE failed ERROR_VARIABLE said)
if(failed)
  string(STRIP "${said}" said)
  message(FATAL_ERROR "${said}")
endif()
if(SKBUILD_METADATA_DIR)
  install(FILES "${listed}" DESTINATION "${SKBUILD_METADATA_DIR}/sboms" COMPONENT moebind)
endif()
