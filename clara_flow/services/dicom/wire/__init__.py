"""The storage SCP on the wire: PS3.8 upper layer and PS3.7 messages, streamed to the spool by our own code."""
