"""The model that the native library is tried out with: a dense feature, a bag of two rows, a row.

It is kept as bytes, since reading its text takes onnx, which takes longer than all of opening an
artifact. ``tests/backends/test_native.py`` holds the two against each other.
"""

from __future__ import annotations

import base64
import zlib

_TEXT = """
<ir_version: 10, opset_import: ["": 21, "rankc": 1]>
test (float[B, 3] dense, int64[B, 3] ids, uint8[4, 3] codes, float[4, 2] scales) => (
    float[B, 7] floats, uint8[B, 7] rounded) {
  floats = rankc.Features <PLAN> (dense, ids, codes, scales)
  rounded = rankc.FeatureCodes <PLAN, scale = 0.25, zero_point = 100> (dense, ids, codes, scales)
}
"""
_PLAN = (
    "plan = [0, 0, 0, 3, 0, -1, -1, -1, -1, -1, 0, 0, 1, 1, 0,"
    " 1, 0, 0, 3, 0, -1, -1, -1, -1, -1, 0, 0, 1, 1, 0,"
    " 1, 1, 2, 3, 2, 1, 3, -1, -1, -1, 0, 0, 1, 2, 2, 0, 0,"
    " 0, 1, 2, 3, 2, 1, 3, -1, -1, -1, 2, 0, 1, 1, 1, 1],"
    " factors = [1.0, 1.0, 0.5, 1.0], pairs = [0, 1], shape = [7]"
)

#: As ``onnx.parser`` writes it.
TEXT = _TEXT.replace("PLAN", _PLAN)
#: The same, serialized and compressed.
_PACKED = (
    "c-rlg!A^rP7{~cqSlJicW|Jv;GCT4JOH{%VA7U5NK^KVxNXsssd;+gtc?+M)XVAicEFR2E^k%=beEt6XTf(n(arw"
    "^hg`$(lTuY>BqS1+qL~0!ASY%T3(KahYr5Em<6xB{i9lR2>%S_~<)dn^Fqi^t|w6Q}7?f8pJK}gI}#60P-Mq<Jm@"
    "}te9+s{M|EVx3p6>(K4eQjCKxBX!4vl>Rh1f5c(N;kg7;i01+L@7gNW=ltj{4vJ2Z-FpX?D9k=3$G)xYUF<^e?=v"
    "jnpyMf=jQdB8X!1De3GiTFN-v<{G<lbk>hqHb+z_8e0+*0F7Po@4iOTUuFqPcZJiy~&pXI`f}TsbYl?O&_yhJvfk"
    "7dg3+!&@*In4=68kgKYUDtRY_w+cXpH+0p1~(9-l`!"
)
MODEL = zlib.decompress(base64.b85decode(_PACKED))
