"""What the bench and its ends have to agree on."""

import base64

EPOCH = 3
KEYS = f"{EPOCH} 2026-01-01T00:00:00Z {base64.b64encode(b'bench' * 6 + b'!!').decode()}\n"
SERVER_ID = b"\x0b"
