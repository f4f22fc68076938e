"Print the requirements of an extra, one a line, as settings.ini lists them: requirements.py docs"

import sys
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
print("\n".join(config["DEFAULT"][f"{sys.argv[1]}_requirements"].split()))
