"""Save the blocks that the deployments name. Run it once, and again to change them.

    MIPRO_BACKEND_URL=https://mipro.example.com MIPRO_API_KEY=... python deployments/save_blocks.py

Without `MIPRO_BACKEND_URL` no credentials are saved, and runs use the embedded backend.
"""

import os
from pathlib import Path

from pydantic import SecretStr

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig, load

CREDENTIALS = "everyday-intents"
SESSIONS = ("everyday-intents", "nightly-intents")
CONFIG = Path(__file__).resolve().parents[1] / "flows" / "everyday_intents.toml"


def main() -> None:
    """Save the credentials, and one config for each session under the session's id."""
    backend_url = os.environ.get("MIPRO_BACKEND_URL")
    credentials = None
    if backend_url:
        key = os.environ.get("MIPRO_API_KEY")
        MiproCredentials(backend_url=backend_url, api_key=SecretStr(key) if key else None).save(
            CREDENTIALS, overwrite=True
        )
        # Loaded again, it is stored by reference: its key is in one place only.
        credentials = load(MiproCredentials, CREDENTIALS)
    for session_id in SESSIONS:
        MiproSessionConfig(
            session_id=session_id,
            # The text and not the path: runs may be on another machine.
            toml_text=CONFIG.read_text(encoding="utf-8"),
            credentials=credentials,
        ).save(session_id, overwrite=True)
    where = f"the backend at {backend_url}" if backend_url else "an embedded backend"
    print(f"Saved the session configs {', '.join(SESSIONS)} for {where}.")


if __name__ == "__main__":
    main()
