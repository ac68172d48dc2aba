# Most of a cold build's time went into what computes nothing: reading the same headers once a file, and optimising code
# that parses arguments, answers HTTP requests or lists a model's tensors. So here sources are compiled several at a time
# (unity builds), and some targets with fewer optimisations. The flags of ggml's libraries and of libllama stay as they are.
#
# No precompiled headers: where sources are joined there is little left to read twice, and ccache would need laxer rules.
# -Og costs GCC less than any level but -O0; nothing for debuggers comes with it. The CPU seconds below are GCC 12's.

# Joins the sources of a target that match a pattern, `size` at a time, in files called unity_NAME. Those that are named at
# the end stay alone, and so do those with flags of their own. If a new llama.cpp brings two sources with the same static
# name, the compiler says so: name one of them there.
function(moebind_join target name size pattern)
  get_target_property(folder ${target} SOURCE_DIR)
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "${pattern}")
  list(FILTER sources INCLUDE REGEX "\\.cpp$")
  set(count 0)
  foreach(source IN LISTS sources)
    cmake_path(GET source FILENAME file)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${folder}")
    get_source_file_property(flags "${source}" DIRECTORY "${folder}" COMPILE_OPTIONS)
    if(NOT flags AND NOT file IN_LIST ARGN)
      math(EXPR group "${count} / ${size}")
      math(EXPR count "${count} + 1")
      set_source_files_properties("${source}" DIRECTORY "${folder}"
        PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF UNITY_GROUP "${name}${group}")
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

# How far sources of a target are optimised, in a release build.
function(moebind_optimise target flags)
  get_target_property(folder ${target} SOURCE_DIR)
  list(TRANSFORM ARGN PREPEND "${folder}/")
  set_property(SOURCE ${ARGN} DIRECTORY "${folder}" APPEND PROPERTY COMPILE_OPTIONS "$<$<CONFIG:Release>:${flags}>")
endfunction()
separate_arguments(full NATIVE_COMMAND "${CMAKE_CXX_FLAGS_RELEASE}")

# libllama, 123 CPU seconds before, 91 now: llama.cpp joins only its models, 16 at a time. With -fPIC an exported function is
# not inlined into others, whether in one source or in two, so joining hardly changes what is made of them.
moebind_join(llama core 16 "^[^/]*$")
moebind_join(llama models 32 "/models/" glm5-next.cpp) # has functions of deepseek4.cpp's names

# llama-common, 173 CPU seconds before, 69 now. With -O1, templates of chats take 5 to 10 % longer than with -O3, and replies
# are parsed in 1.8 ms instead of 1.5; with -Og both would take 1.4 to 1.8 times as long. What looks at all tokens of a
# vocabulary or of a context is optimised as before.
target_compile_options(llama-common PRIVATE $<$<CONFIG:Release>:-O1>)
moebind_optimise(llama-common "${full}" sampling.cpp ngram-cache.cpp ngram-map.cpp ngram-mod.cpp)
moebind_join(llama-common common 15 "" json.cpp) # calls something else ordered_json than chat-peg-parser.cpp does
set_property(TARGET llama-common PROPERTY UNITY_BUILD_CODE_BEFORE_INCLUDE "#undef FILENAME") # each of jinja's has its own

# mtmd, 79 CPU seconds before, 21 now: one source a kind of model, which lists its operations for ggml to compute. Three
# others, optimised as before, scale pictures, transform sound and make it; mtmd-helper.cpp decodes files.
target_compile_options(mtmd PRIVATE $<$<CONFIG:Release>:-Og>)
moebind_optimise(mtmd "${full}" mtmd-image.cpp mtmd-audio.cpp mtmd-helper-gen.cpp)
moebind_optimise(mtmd -O1 mtmd-helper.cpp)
moebind_join(mtmd mtmd 100 "")

# llama-server and its HTTP library, 105 CPU seconds before, 36 now: they wait for the libraries above.
foreach(target IN ITEMS cpp-httplib server-context llama-server-impl)
  if(TARGET ${target})
    target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-Og>)
  endif()
endforeach()
if(TARGET llama-server)
  moebind_join(server-context server 10 "")
  moebind_join(llama-server-impl server 10 "")
endif()
