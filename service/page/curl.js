// Quoting for the curl command that the page shows.

// A word of a POSIX shell.
export function shell(text) {
  return /^[\w@=.,:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// A value of curl's -F, which gives some characters a meaning.
export function field(text) {
  return /^[\w.:/+-]+$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`;
}

// The curl command that posts files ({name, file}) and fields ([name, value]) to a path of this server.
export function curl(path, files, fields) {
  return [
    "curl",
    ...files.map(({ name, file }) => `-F ${shell(`${name}=@${field(file)}`)}`),
    ...fields.map(([name, value]) => `--form-string ${shell(`${name}=${value}`)}`),
    `${location.origin}${path}`,
  ].join(" ");
}
