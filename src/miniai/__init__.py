"miniai"
