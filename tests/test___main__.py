"`python -m miniai` is the command `miniai`."
import subprocess
import sys
from pathlib import Path


def test_python_m_miniai_and_miniai_print_the_same():
    commands = [sys.executable, '-m', 'miniai'], [Path(sys.executable).with_name('miniai')]
    said = [subprocess.run([*command, '--version'], capture_output=True, text=True, timeout=100).stdout
            for command in commands]
    assert said[0] == said[1]
    assert said[0].startswith('miniai ')
