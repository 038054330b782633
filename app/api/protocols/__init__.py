"""Protocols of other servers, one thin file each over the same classifier. `docs/protocols.md` says how each differs."""
