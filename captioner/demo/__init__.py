"""The demo: a web page that shows what each word of a caption looked at (extra ``demo``).

Nothing here talks to any machine but this one: Gradio's analytics are switched off before Gradio is
imported, which every module of this package does below this line. It also keeps a record of every
event, and after each one builds a table of them all, for a page that the demo does not have: here
it forgets them soon.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
