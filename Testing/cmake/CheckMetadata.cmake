# Slicer packages the extension here, with these facts for its catalogue. It passes them on unquoted.
foreach(name IN ITEMS HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS DICOM_SUPPORT_RULE)
  if("${EXTENSION_${name}}" STREQUAL "" OR "${EXTENSION_${name}}" MATCHES ";")
    message(FATAL_ERROR "EXTENSION_${name} has to be one text without ';', and is '${EXTENSION_${name}}'")
  endif()
endforeach()
if(NOT SegMambaSlicer_VERSION MATCHES "^[0-9]+\\.[0-9]+\\.[0-9]+$")
  message(FATAL_ERROR "The version is '${SegMambaSlicer_VERSION}', and has to be that of segmamba/__init__.py")
endif()
