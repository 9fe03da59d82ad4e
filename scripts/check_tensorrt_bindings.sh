#!/usr/bin/env bash
# Holds what we write about TensorRT's Python API (typings/, the stand-in of the tests) against the real bindings of
# versions 10 and 11. Needs no TensorRT and no GPU: the bindings load beside libraries whose functions give nothing.
# Everything is fetched into a folder that goes away at the end; the bindings are proprietary and are not kept.
#
#   bash scripts/check_tensorrt_bindings.sh [VERSION...]      for example 10.13.3.9 11.0.0.114; PYTHON names the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(10.16.1.11 11.4.0.106)
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

cat > "$folder/nothing.c" <<'C'
#define NOTHING(name) void *name(void) { return 0; }
NOTHING(createInferBuilder_INTERNAL) NOTHING(createInferRefitter_INTERNAL) NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL) NOTHING(createNvOnnxParserRefitter_INTERNAL) NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry) NOTHING(initLibNvInferPlugins) NOTHING(getNvOnnxParserVersion)
C
for version in "${versions[@]}"; do
  "$python" -m pip download --quiet --no-deps --dest "$folder/wheels-$version" "tensorrt_cu12_bindings==$version"
  mkdir -p "$folder/$version/libs"
  "$python" -m zipfile -e "$folder/wheels-$version"/*.whl "$folder/$version"
  for library in nvinfer nvinfer_plugin nvonnxparser; do
    file="lib$library.so.${version%%.*}"
    cc -shared -fPIC "-Wl,-soname,$file" -o "$folder/$version/libs/$file" "$folder/nothing.c"
  done
done
FASTV2V_TENSORRT_BINDINGS="$folder" "$python" -m pytest tests/test_tensorrt_bindings.py -v
"$python" -m mypy export/tensorrt_api.py export/tensorrt_builder.py export/tensorrt_engine.py export/tensorrt_store.py
