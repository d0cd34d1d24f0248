// What is shown as a command, so that a shell and curl read it as it was meant.

// A word of a POSIX shell.
export function shell(text) {
  return /^[\w@=.,:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// A value of curl's -F, in which some characters mean something.
export function field(text) {
  return /^[\w.:/+-]+$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`;
}

// A form with files ({name, file}) and fields ([name, value]), posted to a path of this server.
export function curl(path, files, fields) {
  return [
    "curl",
    ...files.map(({ name, file }) => `-F ${shell(`${name}=@${field(file)}`)}`),
    ...fields.map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`),
    `${location.origin}${path}`,
  ].join(" ");
}
