package nodeconfig

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/lib/pq"
)

// hidden stands for a secret.
const hidden = "(hidden)"

// readSecret takes a secret from its file, if that is named by the same layer as the secret or a higher one.
func (s *Settings) readSecret(k *key) {
	path := k.file.said
	switch {
	case path == nil:
		return
	case k.said != nil && k.said.where.layer == path.where.layer:
		s.wrong(k.file.name, path.where, path.point, "given beside %s, by %v; want one of them", k.name, k.said.where)
		return
	case k.said != nil && k.said.where.layer > path.where.layer:
		k.file.said = nil
		return
	}
	text, err := readBounded(path.text, maxSecret)
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	switch {
	case err != nil:
		s.wrong(k.file.name, path.where, path.point, "%v", err)
		k.said = nil
	case text == "":
		s.wrong(k.file.name, path.where, path.point, "%s is empty", path.text)
		k.said = nil
	default:
		k.said = &said{text: text, where: path.where, point: path.point}
	}
}

// hideURL keeps the scheme, host and path of a URL.
func hideURL(text string) string {
	rest := text
	scheme, _, ok := strings.Cut(text, "://")
	if !ok {
		rest = "none://" + text
	}
	u, err := url.Parse(rest)
	if err != nil || u.Host == "" || strings.Contains(u.Path, "@") { // two that have run together
		return hidden
	}
	shown := u.Host + u.Path
	if u.User != nil {
		shown = hidden + "@" + shown
	}
	if u.RawQuery != "" {
		shown += "?" + hidden
	}
	if ok {
		shown = scheme + "://" + shown
	}
	return shown
}

// hideDSN keeps of a DSN what names the database: user, host, port, database and how it is encrypted.
func hideDSN(text string) string {
	c, err := pq.NewConfig(text)
	if err != nil {
		return hidden
	}
	hosts := []string{c.Host}
	for _, other := range c.Multi {
		hosts = append(hosts, other.Host)
	}
	shown := fmt.Sprintf("host=%s port=%d user=%s dbname=%s", strings.Join(hosts, ","), c.Port, c.User, c.Database)
	if c.SSLMode != "" {
		shown += " sslmode=" + string(c.SSLMode)
	}
	if c.Password != "" {
		shown += " password=" + hidden
	}
	return shown
}
