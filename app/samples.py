"""Encoded pictures of 16 x 16 pixels in the formats that most services do not decode.

They are kept here because encoders, which would make them, need not be there and cost far more to load than decoders.
"""

import base64

SAMPLES = {
    "avif": base64.b64decode("""
    AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0bQAAAAAA
    AQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAKgAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAA
    FGlzcGUAAAAAAAAAEAAAABAAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAA
    Mm1kYXQSAAoJGAz/2iAhoNCAMhsUx4eGZQIIIJ5QAAAAOtxBfmJNHJof7nFeIWA=
    """),
}
"""By format."""
