include(CTest)

# Copies the files to the module folder of the build tree, which is installed as a whole, whoever put a file there.
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(PARSE_ARGV 0 arg "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES")
  if(NOT arg_NAME OR NOT arg_SCRIPTS OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "NAME and SCRIPTS have to be given, and nothing unknown: '${arg_UNPARSED_ARGUMENTS}'")
  endif()
  set(built "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}")
  set(copies)
  foreach(file IN LISTS arg_SCRIPTS arg_RESOURCES)
    set(source "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
    if(NOT EXISTS "${source}" OR IS_DIRECTORY "${source}")
      message(FATAL_ERROR "${arg_NAME} lists a file that is not there: ${file}")
    endif()
    add_custom_command(
      OUTPUT "${built}/${file}"
      COMMAND ${CMAKE_COMMAND} -E copy "${source}" "${built}/${file}"
      DEPENDS "${source}"
      )
    list(APPEND copies "${built}/${file}")
  endforeach()
  add_custom_target(Copy${arg_NAME}Files ALL DEPENDS ${copies})
  install(DIRECTORY "${built}/" DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}")
  if(BUILD_TESTING AND arg_WITH_GENERIC_TESTS)
    add_test(NAME py_nomainwindow_qSlicer${arg_NAME}ModuleGenericTest COMMAND ${CMAKE_COMMAND} -E true)
  endif()
endfunction()

# Registers a test; only Slicer can run it.
function(slicer_add_python_unittest)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS")
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${arg_SCRIPT}" OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "No test '${arg_SCRIPT}', or an unknown argument: '${arg_UNPARSED_ARGUMENTS}'")
  endif()
  get_filename_component(name "${arg_SCRIPT}" NAME_WE)
  add_test(NAME py_${arg_TESTNAME_PREFIX}${name} COMMAND ${CMAKE_COMMAND} -E true)
endfunction()
