"""nbdev_test, with shells that do not clean up at exit.

Each notebook runs in an IPython shell of its own. At exit, every shell would collect the garbage of the whole process,
which takes minutes for all notebooks together; until then it would keep the variables of its notebook.
"""
import atexit
import os

from execnb.shell import CaptureShell
from nbdev.test import nbdev_test

create = CaptureShell.__init__


def create_without_cleanup(self, *args, **kwargs):
    create(self, *args, **kwargs)
    atexit.unregister(self.atexit_operations)


CaptureShell.__init__ = create_without_cleanup
os.environ.setdefault("CLIP_FT_ROOT", "../runs/notebooks")  # what app.ipynb and start.ipynb show
nbdev_test()
