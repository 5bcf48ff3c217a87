"""Who we are in association requests and files (PS3.7 Annex D.3.3.2, PS3.10 section 7.1)."""

CLASS_UID = "2.25.215613894526473859013748120034829761905"  # ours, for ever; random (PS3.5 Annex B.2)
VERSION_NAME = "CLARA_FLOW"
