import sys

from mvhlib.encoders.command import main

sys.exit(main())
