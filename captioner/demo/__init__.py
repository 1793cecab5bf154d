"""The demo: a web page that shows what each word of a caption looked at (extra ``demo``).

Nothing here talks to any machine but this one: Gradio's analytics are switched off before Gradio is
imported, which every module of this package does below this line.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
