"""The dashboard: what a process does, and stopping what is stuck, in a browser. Needs the extra `web`.

    app.mount("/lanes", dashboard(sup))

The pages ask what the status socket answers (`runtime.status.protocol`), through one seam (`source.py`): a supervisor
in this process, or another process through its socket (`lanes web`). They are rendered here; one small script keeps
them up to date, and without it they can be reloaded.
"""

from .app import dashboard as dashboard

__all__ = ["dashboard"]
