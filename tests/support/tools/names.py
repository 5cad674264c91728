"""Names that a column of a source may have, and that SQL, JSON or a library reads as more."""

NAMES = ("Order ID", "ev.id", "it's", 'say "amt"', "a%", "c;d", "[x]", ".x", "a[0]", "back\\slash",
         "tick`x", "größe", "1st", "select", "Caps", "_id", "$x", "{a}", "a=b", "a,b", "a/b", "~1",
         "#h", "--c", "/*c", " x ", "a\u00a0b", "key: value", "<b>", "😀", "file_row_number",
         "filename", "rowid", "_position", "_batch", "_text", "_contents", "_copies", "_age", "_at",
         "_is_last", "_order", "period", "created", "event_timestamp", "label", "json", "copy",
         "schema", "dict", "model_config", "model_dump", "__class__", "self")  # fmt: skip
