"""`platform/` must never shadow the standard library's platform module."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).resolve().parent.parent
PRINT_PLATFORM = "import platform; print(platform.__file__); platform.system()"


def test_there_is_no_package_named_platform():
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_the_standard_library_wins_from_the_repository_root():
    # -c puts the current directory first on the path, as scripts and notebooks at the root do
    out = subprocess.run([sys.executable, "-c", PRINT_PLATFORM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("platform.py")
    assert str(ROOT) not in out.stdout


@pytest.mark.slow
def test_the_standard_library_wins_in_a_ray_worker_with_this_working_directory():
    @ray.remote
    def where():
        import os
        import platform

        return os.path.isdir("platform/pastry"), platform.__file__

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"working_dir": str(ROOT)})
    try:
        in_working_directory, file = ray.get(where.remote())
    finally:
        ray.shutdown()
    assert in_working_directory
    assert file.endswith("platform.py") and "working_dir" not in file
